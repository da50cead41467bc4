"""Plain text of a bounded width: tables and lists."""

from __future__ import annotations

import textwrap
from collections.abc import Sequence

WIDTH = 100
"""Columns of everything that is printed."""
NARROW = 6
"""Columns that are left to a cell where a table would be too wide."""


def text_table(header: Sequence[str], rows: Sequence[Sequence[str]]) -> str:
    """Returns an aligned plain-text table; columns without a single entry are left out, wide ones are broken.

    Args:
        header: Names of the columns.
        rows: The cells, one sequence a row, each as long as ``header``.
    """
    used = [column for column in range(len(header)) if any(row[column] for row in rows)]
    lines = [[header[column] for column in used], *([row[column] for column in used] for row in rows)]
    widths = [max(len(line[column]) for line in lines) for column in range(len(used))]
    while sum(widths) + 2 * (len(widths) - 1) > WIDTH and max(widths) > NARROW:
        widths[widths.index(max(widths))] -= 1
    lines.insert(1, ["-" * width for width in widths])
    return "\n".join(line for cells in lines for line in _row(cells, widths))


def _row(cells: Sequence[str], widths: Sequence[int]) -> list[str]:
    broken = [_broken(cell, width) or [""] for cell, width in zip(cells, widths, strict=True)]
    found = []
    for index in range(max(len(parts) for parts in broken)):
        parts = [part[index] if index < len(part) else "" for part in broken]
        found.append("  ".join(part.ljust(width) for part, width in zip(parts, widths, strict=True)).rstrip())
    return found


def _broken(text: str, width: int) -> list[str]:
    """Breaks a text at its spaces where it is too wide; what is no wider stays as it is."""
    return [text] if len(text) <= width else textwrap.wrap(text, width, break_on_hyphens=False)


def text_lines(entries: Sequence[str], marks: Sequence[str] = ()) -> str:
    """Returns one entry a line, each after its mark, and goes on below it where it is too wide."""
    found = []
    for entry, mark in zip(entries, marks or [""] * len(entries), strict=True):
        first, *more = _broken(entry, WIDTH - len(mark)) or [""]
        found += [mark + first, *(" " * len(mark) + line for line in more)]
    return "\n".join(found)
