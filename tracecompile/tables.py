"""Plain text of a bounded width: tables and lists."""

from __future__ import annotations

import textwrap
from collections.abc import Sequence

WIDTH = 80
"""Columns of everything that is printed."""
NARROW = 6
"""Columns that are left to a cell where a table would be too wide."""


def text_table(header: Sequence[str], rows: Sequence[Sequence[str]]) -> str:
    """Returns an aligned plain-text table; columns without a single entry are left out, wide ones are broken.

    Args:
        header: Names of the columns.
        rows: The cells, one sequence a row, each as long as ``header``.
    """
    lines = _used(header, rows)
    widths, words = _widths(lines), _words(lines)
    while sum(widths) + 2 * (len(widths) - 1) > WIDTH and max(widths) > NARROW:
        whole = [column for column, width in enumerate(widths) if width > words[column]]  # no word is broken yet
        widths[max(whole or range(len(widths)), key=widths.__getitem__)] -= 1
    lines.insert(1, ["-" * width for width in widths])
    return "\n".join(line for cells in lines for line in _row(cells, widths))


def text_records(header: Sequence[str], rows: Sequence[Sequence[str]]) -> str:
    """Returns a table where none of its cells need be broken, else a paragraph a row: its first cell, then the others.

    Args:
        header: Names of the columns.
        rows: The cells, as for ``text_table``.
    """
    widths = _widths(_used(header, rows))
    if sum(widths) + 2 * (len(widths) - 1) <= WIDTH:
        return text_table(header, rows)
    widest = max(map(len, header[1:]))
    found = []
    for first, *others in rows:
        found.append(text_lines([first]))
        pairs = [(name, cell) for name, cell in zip(header[1:], others, strict=True) if cell]
        found.append(text_lines([cell for _, cell in pairs], [f"  {name:<{widest}}  " for name, _ in pairs]))
    return "\n".join(found)


def _used(header: Sequence[str], rows: Sequence[Sequence[str]]) -> list[list[str]]:
    used = [column for column in range(len(header)) if any(row[column] for row in rows)]
    return [[line[column] for column in used] for line in (header, *rows)]


def _widths(lines: Sequence[Sequence[str]]) -> list[int]:
    return [max(map(len, column)) for column in zip(*lines, strict=True)]


def _words(lines: Sequence[Sequence[str]]) -> list[int]:
    """Returns the length of the longest word of every column."""
    return [
        max((len(word) for cell in column for word in cell.split()), default=0) for column in zip(*lines, strict=True)
    ]


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
