"""Every option of every choice by itself: the smallest programs that show what one thing does."""

from __future__ import annotations

from collections.abc import Iterator

from fuzz.choices import Choices
from fuzz.render import Rendered, render

ONCE = ("odd current 1", "odd writes current 1")
"""The places in which odd operations are tried; elsewhere they are the same ones."""


def singles() -> Iterator[Rendered]:
    """Yields a program for every option, on top of the least that must be chosen for it to be offered."""
    known: set[str] = set()
    waiting: list[dict[str, int]] = [{}]
    while waiting:
        base = waiting.pop(0)
        choose = Choices(taken=base)
        made = render(choose)
        if not base:
            yield made
        for name, count in choose.offered.items():
            if _kind(name) in known or (name.startswith("odd") and name not in ONCE):
                continue
            known.add(_kind(name))
            for number in range(1, count):
                taken = {**base, name: number}
                yield render(Choices(taken=taken))
                if len(taken) <= 2:
                    waiting.append(taken)


def _kind(name: str) -> str:
    """Returns the name of a choice without the layer that it is made for; records of the three values are one kind."""
    words = name.split()
    words = [word for word in words if word not in ("1", "2", "3", "y", "z", "v", "y_rec", "z_rec", "v_rec", "main")]
    return " ".join(word.rstrip("123") for word in words)
