"""Where an operation stands in the user's code: the line to show, and the place to recognise it by."""

from __future__ import annotations

import inspect
import linecache
import re
import sys
from dataclasses import dataclass, replace
from functools import lru_cache
from pathlib import Path
from types import CodeType

import torch
from torch import nn

from tracecompile.errors import SourceLine

TORCH = str(Path(torch.__file__).parent) + "/"
PACKAGE = str(Path(__file__).parent.parent) + "/"
CAPTURE = str(Path(__file__).parent) + "/"
GRAPHS = PACKAGE + "nir/"
"""The code of models that nobody wrote: where they come from a graph, it is all that there is to point at."""


INSTALLED = re.compile(r"[/\\\\](site|dist)-packages[/\\\\]")
"""Code of libraries: whoever is refused wants to know where the own code calls it."""

Position = tuple[int | None, int | None, int | None, int | None]


@lru_cache(maxsize=1024)
def positions(code: CodeType) -> tuple[Position, ...]:
    """Returns the stretch of source text of each instruction.

    The instruction itself is no name for a place: the interpreter replaces it by a faster one once a loop is warm, and
    the call then happens one instruction earlier.
    """
    return tuple(code.co_positions())


@dataclass(frozen=True)
class Place:
    """One point of the user's program, with the calls that led to it.

    Two operations at the same place are two visits of one expression: the time loop came round again.

    Attributes:
        frames: (file, function, position in it) of every frame from the model's ``forward`` inwards, outermost first.
        module_path: Dotted path of the submodule that was running.
    """

    frames: tuple[tuple[str, str, Position], ...]
    module_path: str


def current_place(module_path: str) -> tuple[Place, SourceLine | None]:
    """Returns the place of the running operation and the user's innermost line."""
    frames: list[tuple[str, str, Position]] = []
    where: SourceLine | None = None
    caller: SourceLine | None = None
    frame = sys._getframe(1)
    while frame is not None:
        code = frame.f_code
        file = code.co_filename
        if file.startswith(CAPTURE):
            if code.co_name == "run_user_code":
                break
        elif not file.startswith(TORCH):
            position = positions(code)[frame.f_lasti // 2]
            frames.append((file, code.co_name, position))
            if where is None and (not file.startswith(PACKAGE) or file.startswith(GRAPHS)):
                where = source_line(file, frame.f_lineno, module_path, position)
            if caller is None and not file.startswith(PACKAGE) and not INSTALLED.search(file):
                caller = source_line(file, frame.f_lineno, position=position)
        frame = frame.f_back  # type: ignore[assignment]
    if where is not None and caller is not None and (caller.file, caller.line) != (where.file, where.line):
        where = replace(where, caller=caller)
    return Place(tuple(reversed(frames)), module_path), where


def source_line(file: str, line: int, module_path: str = "", position: Position | None = None) -> SourceLine:
    """Reads one line of the user's source.

    Args:
        file: Its file.
        line: Its number.
        module_path: Dotted path of the submodule that was running.
        position: Of the expression that is meant, if it is known.
    """
    text = linecache.getline(file, line)
    columns = None if position is None else _columns(text, line, position)
    return SourceLine(file, line, text.strip(), module_path, columns=columns)


def _columns(text: str, line: int, position: Position) -> tuple[int, int] | None:
    """Returns which characters of a stripped line an expression takes up; None where it takes up none of them."""
    first, last, start, end = position
    if first is None or last is None or start is None or end is None or not first <= line <= last:
        return None
    content = text.encode()  # positions count bytes
    margin, length = len(text) - len(text.lstrip()), len(text.strip())
    begins = len(content[:start].decode(errors="replace")) - margin if line == first else 0
    ends = len(content[:end].decode(errors="replace")) - margin if line == last else length
    begins, ends = max(begins, 0), min(ends, length)
    return (begins, ends) if begins < ends else None


def line_of_forward(model: nn.Module) -> SourceLine | None:
    """Returns the line that defines a model's forward, for what no single line in it is to blame for."""
    try:
        function = inspect.unwrap(type(model).forward)
        file = inspect.getsourcefile(function)
        lines, first = inspect.getsourcelines(function)
    except (OSError, TypeError):
        return None
    if file is None or file.startswith(TORCH):
        return None
    behind = next((place for place, text in enumerate(lines) if text.lstrip().startswith("def ")), 0)  # decorators
    line, name = first + behind, lines[behind].partition("(")[0]
    return source_line(file, line, position=(line, line, 0, len(name.encode())))


def line_of_failure(error: BaseException) -> SourceLine | None:
    """Returns the innermost line of the user's that an exception passed through."""
    where: SourceLine | None = None
    trace = error.__traceback__
    while trace is not None:
        file = trace.tb_frame.f_code.co_filename
        if not file.startswith((TORCH, PACKAGE)):
            position = positions(trace.tb_frame.f_code)[trace.tb_lasti // 2]
            where = source_line(file, trace.tb_lineno, position=position)
        trace = trace.tb_next
    return where
