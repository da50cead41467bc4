"""The text of every stage of a compilation, printed when it is asked for."""

from __future__ import annotations

from collections.abc import Iterable

from tracecompile.printing.page import Printed
from tracecompile.printing.stage import print_program
from tracecompile.program import StepProgram

UNCHANGED = "# nothing changed"


class Stages:
    """Programs after capture and after each pass.

    A pass returns a new program that shares what it left alone, so that keeping all of them costs next to nothing,
    while printing them takes longer than most of the passes.
    """

    def __init__(self, programs: Iterable[tuple[str, StepProgram]]) -> None:
        self.programs = tuple(programs)
        self._printed: tuple[Printed, ...] = ()

    @property
    def printed(self) -> tuple[Printed, ...]:
        """The whole text of every stage, and what it has to be run with."""
        if not self._printed:
            self._printed = tuple(print_program(program, name) for name, program in self.programs)
        return self._printed

    @property
    def texts(self) -> list[tuple[str, str]]:
        """(stage, text) in order; of a stage that changed nothing only the first line, and that it did not."""
        found = []
        before = ""
        for (name, _), printed in zip(self.programs, self.printed, strict=True):
            first, _, rest = printed.text.partition("\n")
            found.append((name, f"{first}\n{UNCHANGED}\n" if rest == before else printed.text))
            before = rest
        return found

    @property
    def code(self) -> str:
        """The text of the last stage."""
        return self.printed[-1].text
