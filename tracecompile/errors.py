"""What tracecompile refuses, always with the user's own line and a way out."""

from __future__ import annotations

from dataclasses import dataclass


@dataclass(frozen=True)
class SourceLine:
    """A place in the user's code.

    Attributes:
        file: Path of the source file, as Python reports it.
        line: Line number, counted from 1.
        source: Text of that line, stripped.
        module_path: Dotted path of the submodule whose code it is ("" for the model itself).
        caller: Where the user's own code calls this line, if it is a library's.
    """

    file: str
    line: int
    source: str
    module_path: str = ""
    caller: SourceLine | None = None

    def __str__(self) -> str:
        inside = f" (in {self.module_path})" if self.module_path else ""
        return f"{self.file}:{self.line}{inside}\n    {self.source}"


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
