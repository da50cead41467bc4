"""The pages of the documentation: their blocks of code, run as a reader would run them."""

from __future__ import annotations

import linecache
import re
import sys
from collections.abc import Iterator
from pathlib import Path
from types import ModuleType

ROOT = Path(__file__).resolve().parent.parent.parent
DOCS = ROOT / "docs"
PAGES = (ROOT / "README.md", *sorted(DOCS.rglob("*.md")))
_FENCE = re.compile(r"^( *)```(\w*)\n(.*?)^\1```$", re.MULTILINE | re.DOTALL)


def blocks(page: Path, language: str) -> Iterator[tuple[int, str]]:
    """Yields the blocks of a language, each with the number of its first line."""
    text = page.read_text()
    for match in _FENCE.finditer(text):
        if match[2] == language:
            yield text[: match.start(3)].count("\n") + 1, match[3]


def languages(page: Path) -> set[str]:
    """Returns the languages of a page's blocks."""
    return {match[2] for match in _FENCE.finditer(page.read_text())}


def needed(page: Path) -> str | None:
    """Returns the library that a page is about, where it says so in its first line."""
    found = re.match(r"<!-- needs: (\w+) -->\n", page.read_text())
    return found[1] if found else None


def run(page: Path, folder: Path) -> ModuleType:
    """Runs the Python of a page as one module, whose lines have the numbers that they have on the page."""
    lines = [""] * page.read_text().count("\n")
    for start, text in blocks(page, "python"):
        code = text.splitlines()
        lines[start - 1 : start - 1 + len(code)] = code
    path = folder / f"page_{page.stem.lower()}.py"
    path.write_text("\n".join(lines) + "\n")
    linecache.checkcache(str(path))
    module = ModuleType(path.stem)
    module.__file__ = str(path)
    sys.modules[module.__name__] = module
    try:
        exec(compile(path.read_text(), str(path), "exec"), vars(module))
    finally:
        del sys.modules[module.__name__]
    return module


def commands(page: Path) -> Iterator[str]:
    """Yields the commands of a page, one a line."""
    for _, text in blocks(page, "sh"):
        yield from (line.strip() for line in text.splitlines() if line.strip() and not line.startswith("#"))
