"""The one question: is the converted net the model?

A program is converted right, or it is refused at a line of its own file. There is no third answer.

Example:
    >>> require_right(Program(MyNet))
    >>> require_refused(Program(MyOtherNet), line="z = torch.rand(3)")
"""

from __future__ import annotations

import re
import warnings
from collections.abc import Callable, Iterable
from pathlib import Path

import tracecompile
from support.comparisons import (
    Convert,
    Wrong,
    converted,
    require_chunks,
    require_flat,
    require_gradients,
    require_values,
)
from support.program import HIDDEN, INPUTS, OUTPUTS, Program, spike
from support.soundness import Unsound, require_sound
from tracecompile.errors import ConversionError, PassError

__all__ = [
    "HIDDEN", "INPUTS", "OUTPUTS", "PARTS", "Program", "Unsound", "Wrong",
    "require_refused", "require_right", "require_right_or_refused", "spike",
]  # fmt: skip

Part = Callable[[Program, Convert], None]
PARTS: tuple[Part, ...] = (require_values, require_gradients, require_chunks, require_flat)
FAULT = ("fault of tracecompile", "please report")


def require_right(
    program: Program, *, parts: Iterable[Part] = PARTS, convert: Convert | None = None, sound: bool = True
) -> None:
    """Requires that the converted net is the model.

    Values bit for bit at lengths and batch sizes that the conversion did not see, in training and in evaluation;
    running statistics; gradients with a bin per step; chunks up to rounding; memory that does not grow with the number
    of steps; and a model that the conversion leaves alone.

    Args:
        program: The model and its user.
        parts: What is compared.
        convert: In place of ``tracecompile.convert``.
        sound: Whether the program itself is examined first.

    Raises:
        Wrong: It is not; all that is wrong is in the message.
        Unsound: The program can tell nothing.
    """
    with warnings.catch_warnings():
        warnings.simplefilter("ignore")
        if sound:
            require_sound(program)
        wrong: list[str] = []
        first: Exception | None = None
        for part in parts:
            try:
                part(program, convert or tracecompile.convert)
            except Unsound:
                raise
            except Exception as fault:
                first = first or fault
                wrong.append(describe(fault))
        if first is not None:
            raise Wrong("; ".join(dict.fromkeys(wrong))) from first


def require_refused(
    program: Program, *, line: str | None = None, convert: Convert | None = None, sound: bool = True
) -> ConversionError:
    """Requires that the program is refused, when it is converted or when the net is first called.

    Args:
        program: The model and its user.
        line: Text of the user's line that the error names.
        convert: In place of ``tracecompile.convert``.
        sound: Whether the program itself is examined first.

    Returns:
        The error.

    Raises:
        Wrong: It is converted, or refused without a line of the user's file.
        Unsound: The program can tell nothing.
    """
    with warnings.catch_warnings():
        warnings.simplefilter("ignore")
        if sound:
            require_sound(program)
        try:
            pair = converted(program, convert or tracecompile.convert)
            program.drive(pair.net, program.drawn(*program.example))
        except ConversionError as refusal:
            require_named_line(program.source_file(), refusal, line)
            return refusal
        raise Wrong("it is converted, but must be refused")


def require_right_or_refused(
    program: Program,
    *,
    line: str | None = None,
    parts: Iterable[Part] = PARTS,
    convert: Convert | None = None,
    sound: bool = True,
) -> str:
    """Requires that the program is either converted right or refused at a line of its own file.

    Returns:
        "right" or "refused".

    Raises:
        Wrong: Neither is so.
        Unsound: The program can tell nothing.
    """
    try:
        require_right(program, parts=parts, convert=convert, sound=sound)
    except Wrong as wrong:
        if not isinstance(wrong.__cause__, ConversionError):
            raise
        require_named_line(program.source_file(), wrong.__cause__, line)
        return "refused"
    return "right"


def require_named_line(file: Path, refusal: ConversionError, line: str | None = None) -> None:
    """Requires that a refusal is the user's business, and names a line of the user's file.

    Raises:
        Wrong: It calls itself a fault of tracecompile, or names no line, or another one.
    """
    if isinstance(refusal, PassError) or any(word in str(refusal) for word in FAULT):
        raise Wrong(f"a fault is blamed on tracecompile: {describe(refusal)}") from refusal
    named = re.findall(re.escape(str(file)) + r":(\d+)", str(refusal))
    if not named:
        raise Wrong(f"refused without a line of {file.name}: {describe(refusal)}") from refusal
    source = file.read_text(encoding="utf-8").splitlines()
    if line is not None and not any(line in source[int(number) - 1] for number in named):
        raise Wrong(f"refused at another line: {describe(refusal)}") from refusal


def describe(fault: Exception) -> str:
    """Returns one line on what went wrong."""
    if isinstance(fault, Wrong):
        return str(fault)
    kind = "refused" if isinstance(fault, ConversionError) else "crash"
    return f"{kind}: {type(fault).__name__}: {' '.join(str(fault).split())[:300]}"
