"""What a pass is: a name, what it requires, what it does, what it ensures. Contracts are always on."""

from __future__ import annotations

from collections.abc import Sequence
from typing import ClassVar

from tracecompile.analysis.wellformed import check_well_formed
from tracecompile.errors import PassError
from tracecompile.passes.untouched import Untouched
from tracecompile.program import StepProgram


class Pass:
    """One rewriting of a program.

    Subclasses set ``name`` and override ``run``, and ``requires`` and ``ensures`` where they have something to promise.
    That the result is well formed, and that the program given is left as it was, every pass promises.
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

    def __call__(self, program: StepProgram, earlier: Sequence[str] = ()) -> StepProgram:
        """Runs the pass between its contracts.

        Args:
            program: What to rewrite.
            earlier: Names of the passes that have run before, for the error.

        Raises:
            PassError: The pass cannot run on this program, or broke a promise; names it and those before it.
        """

        def demand(fault: str | None, what: str) -> None:
            if fault is not None:
                before = f"It ran after {', '.join(earlier)}." if earlier else "It ran first."
                raise PassError(
                    f"Pass {self.name} {what}: {fault}. {before}", "This is a fault of tracecompile; please report it."
                )

        demand(self.requires(program), "cannot run")
        given = Untouched(program)
        result = self.run(program)
        demand(given.changed(), "changed the program that it was given")
        demand(check_well_formed(result), "left a malformed program")
        demand(self.ensures(program, result), "broke its promise")
        return result
