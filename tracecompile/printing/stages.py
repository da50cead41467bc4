"""The text of every stage of a compilation, printed when it is asked for."""

from __future__ import annotations

from collections.abc import Iterable
from dataclasses import replace
from functools import cached_property

from tracecompile.printing.code import bind
from tracecompile.printing.page import Printed
from tracecompile.printing.stage import print_program
from tracecompile.program import StepProgram

UNCHANGED = "# nothing changed"


class Stages:
    """Programs after capture and after each pass.

    A pass returns a new program that shares what it left alone, so that keeping all of them costs next to nothing,
    while printing them takes longer than most of the passes.
    """

    def __init__(self, programs: Iterable[tuple[str, StepProgram]], code: str | None = None) -> None:
        """Takes the programs, by stage, and what runs the last one where that is not what is printed of it."""
        self.programs = tuple(programs)
        self.given = code
        self._printed: tuple[Printed, ...] = ()

    @property
    def printed(self) -> tuple[Printed, ...]:
        """The whole text of every stage, and what it has to be run with."""
        if not self._printed:
            earlier = (print_program(program, name) for name, program in self.programs[:-1])
            self._printed = (*earlier, self.last)
        return self._printed

    def run_as_printed(self, file: str = "<printed>") -> None:
        """Lets the last program run as it is printed.

        Args:
            file: What tracebacks call the text.

        Raises:
            InvalidInput: The text was given, and lacks a function of the program.
        """
        program = self.programs[-1][1]
        bind(self.last, program.root, self.last.run(file))

    @cached_property
    def last(self) -> Printed:
        """The whole text of the last stage, which is what runs, and what it has to be run with."""
        name, program = self.programs[-1]
        printed = print_program(program, name)
        return printed if self.given is None else replace(printed, text=self.given)

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
        return self.last.text
