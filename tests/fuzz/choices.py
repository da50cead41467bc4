"""The choices that a user makes when writing a model: drawn, or read back from what was drawn."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from typing import TypeVar

from hypothesis import strategies as st

T = TypeVar("T")
USUAL = 0.7
"""How often the first option of a list is taken without looking at the others, so that programs stay readable."""


class Choices:
    """Makes every choice once, by name.

    Attributes:
        taken: Name -> number of the option, of the choices in which the first option was not taken.
        offered: Name -> number of options, of all choices that were made.
    """

    def __init__(self, draw: Callable[[int, float], int] | None = None, taken: dict[str, int] | None = None) -> None:
        self.taken = dict(taken or {})
        self._draw = draw
        self._made: dict[str, int] = {}
        self.offered: dict[str, int] = {}

    def __call__(self, name: str, options: Sequence[T], usual: float = USUAL) -> T:
        """Returns one of the options; the first is the simplest, and is taken at least as often as ``usual`` says."""
        if name not in self._made:
            self.offered[name] = len(options)
            number = self._draw(len(options), usual) if self._draw is not None else self.taken.get(name, 0)
            self._made[name] = number if number < len(options) else 0
            self.taken.pop(name, None)
            if self._made[name]:
                self.taken[name] = self._made[name]
        return options[min(self._made[name], len(options) - 1)]


@st.composite
def drawn_choices(draw: st.DrawFn) -> Choices:
    """Draws a user: choices that are made one after the other while a program is rendered.

    Hypothesis draws the source of chance, not the single choices: programs of one seed are then as different as those
    of many, and ``shrink`` makes a program smaller by its choices, which it knows by name.
    """
    chance = draw(st.randoms(use_true_random=True))

    def one(options: int, usual: float) -> int:
        return 0 if options == 1 or chance.random() < usual else chance.randrange(options)

    return Choices(one)
