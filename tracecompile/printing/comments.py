"""The user's source line above the lines that come from it."""

from __future__ import annotations

import re
from pathlib import Path

import tracecompile
from tracecompile.errors import SourceLine
from tracecompile.printing.layout import WIDTH

_INSTALLED = re.compile(r".*[/\\](?:site|dist)-packages[/\\]")
_PACKAGE = Path(tracecompile.__file__).parent


def short_path(file: str) -> str:
    """Returns the path of a source file as a reader knows it: from its package on, or its name for the user's own."""
    if _INSTALLED.match(file):
        return _INSTALLED.sub("", file).replace("\\", "/")
    path = Path(file)
    if not path.is_absolute():
        return file  # of a program that was read: it was shortened where it was written
    if path.is_relative_to(_PACKAGE):
        return path.relative_to(_PACKAGE.parent).as_posix()
    return path.name


def source_comment(where: SourceLine) -> str:
    """Returns the comment for a run of lines."""
    text = f"# {short_path(where.file)}:{where.line}  {where.source}".rstrip()
    return text if len(text) <= WIDTH - 4 else f"{text[: WIDTH - 7]}..."
