"""What a pass is: a name, what it requires, what it does, what it ensures. Contracts are always on."""

from __future__ import annotations

from typing import ClassVar

from tracecompile.analysis.wellformed import check_well_formed
from tracecompile.errors import PassError
from tracecompile.program import StepProgram


class Pass:
    """One rewriting of a program.

    Subclasses set ``name`` and override ``run``, and ``requires`` and ``ensures`` where they have something to promise.
    """

    name: ClassVar[str]

    def requires(self, program: StepProgram) -> str | None:
        """Returns what the program lacks for this pass to run, or None."""
        return None

    def run(self, program: StepProgram) -> StepProgram:
        """Returns the rewritten program; the one given is not changed."""
        raise NotImplementedError

    def ensures(self, before: StepProgram, after: StepProgram) -> str | None:
        """Returns which promise the result breaks, or None."""
        return None

    def __call__(self, program: StepProgram) -> StepProgram:
        """Runs the pass between its contracts.

        Raises:
            PassError: The pass cannot run on this program, or broke its promise; names the pass.
        """
        self._demand(self.requires(program), "cannot run")
        result = self.run(program)
        self._demand(check_well_formed(result), "left a malformed program")
        self._demand(self.ensures(program, result), "broke its promise")
        return result

    def _demand(self, fault: str | None, what: str) -> None:
        if fault is not None:
            raise PassError(f"Pass {self.name} {what}: {fault}.", "This is a fault of tracecompile; please report it.")
