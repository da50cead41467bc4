"""The table of models that convert takes unchanged: entries by group, and what is checked for each of them."""

from __future__ import annotations

import importlib
from pathlib import Path

from table.harness import Entry

GROUPS = ("idioms", "deep", "snntorch", "norse", "spikingjelly", "sinabs", "tracetorch")


def all_entries() -> list[Entry]:
    """Returns the entries of every group that is there, in the order of the table."""
    found: list[Entry] = []
    for group in GROUPS:
        if (Path(__file__).parent / f"{group}.py").exists():
            found += importlib.import_module(f"table.{group}").ENTRIES
    return found
