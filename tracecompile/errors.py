"""What tracecompile refuses, always with the user's own line and a way out."""

from __future__ import annotations

import unicodedata
from dataclasses import dataclass, field


@dataclass(frozen=True)
class SourceLine:
    """A place in the user's code.

    Attributes:
        file: Path of the source file, as Python reports it.
        line: Line number, counted from 1.
        source: Text of that line, stripped.
        module_path: Dotted path of the submodule whose code it is ("" for the model itself).
        caller: Where the user's own code calls this line, if it is a library's.
        columns: Which characters of ``source`` are meant, from the first to behind the last; None where that is not
            known. Two places on one line are the same line.
    """

    file: str
    line: int
    source: str
    module_path: str = ""
    caller: SourceLine | None = None
    columns: tuple[int, int] | None = field(default=None, compare=False)

    @property
    def carets(self) -> str:
        """What stands under the line to show which part of it is meant; "" where that is not known."""
        if self.columns is None:
            return ""
        start, end = self.columns
        before = "".join("\t" if letter == "\t" else " " * _width(letter) for letter in self.source[:start])
        return before + "^" * sum(map(_width, self.source[start:end]))

    def __str__(self) -> str:
        inside = f" (in {self.module_path})" if self.module_path else ""
        lines = (f"{self.file}:{self.line}{inside}", self.source, self.carets)
        return "\n    ".join(line for line in lines if line)


def _width(letter: str) -> int:
    """Returns how many columns of a terminal a character takes."""
    if unicodedata.combining(letter):
        return 0
    return 2 if unicodedata.east_asian_width(letter) in "WF" else 1


class ConversionError(RuntimeError):
    """The model, or a call of it, is not something that can be converted.

    Attributes:
        explanation: One sentence: what was found and why it is a problem.
        advice: One sentence: what to write instead.
        where: The user's line, or None where no single line is to blame.
        library: The line of a library that it leads to, if that is where the fault was met.
    """

    def __init__(self, explanation: str, advice: str = "", where: SourceLine | None = None) -> None:
        self.explanation = explanation
        self.advice = advice
        self.where = where.caller if where is not None and where.caller is not None else where
        self.library = where if self.where is not where else None
        super().__init__(str(self))

    def at(self, where: SourceLine | None) -> ConversionError:
        """Returns the same error, which names a line if it names none yet."""
        if where is None or self.where is not None:
            return self
        return type(self)(self.explanation, self.advice, where)

    def __str__(self) -> str:
        parts = [self.explanation]
        if self.advice:
            parts.append(self.advice)
        text = " ".join(parts)
        for word, line in (("at", self.where), ("inside", self.library)):
            text += f"\n  {word} {line}" if line is not None else ""
        return text


class UnsupportedControlFlow(ConversionError):
    """Python control flow depends on the values of a tensor."""


class UnsupportedState(ConversionError):
    """A state is kept or written in a way that cannot be lifted out of the step."""


class UnrollableLoop(ConversionError):
    """The time loop's body is not the same at every step."""


class LengthMatters(UnrollableLoop):
    """The model is another program for another number of time steps."""


class NoSpikingLayer(ConversionError):
    """The model has no state that lives over time, or nothing that spikes."""


class UnsupportedOperation(ConversionError):
    """An operation of the model has no place in a trace-form program."""


class InvalidInput(ConversionError, ValueError):
    """The tensors or options handed to convert or to the converted module do not fit."""


class SelfCheckFailed(ConversionError):
    """The converted module does not compute what the model computes on the example."""


class PassError(ConversionError):
    """A compiler pass broke its own contract: a fault of tracecompile, not of the model."""
