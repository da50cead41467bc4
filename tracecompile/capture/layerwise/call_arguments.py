"""The leaves of the arguments of a call, and arguments with one of them replaced."""

from __future__ import annotations

import itertools
from typing import Any

from tracecompile.capture.loops.lengths import rebuild


def leaves_of(arguments: Any) -> list[Any]:
    """Returns the leaves of arguments, in order."""
    found: list[Any] = []

    def note(leaf: Any) -> Any:
        found.append(leaf)
        return leaf

    rebuild(arguments, note)
    return found


def replaced(arguments: Any, place: int, value: Any) -> Any:
    """Returns arguments with another leaf at a place."""
    counter = itertools.count()
    return rebuild(arguments, lambda leaf: value if next(counter) == place else leaf)
