"""Inputs on a device, which says a little later whether they are finite: no call waits for that."""

from __future__ import annotations

from collections import deque
from collections.abc import Iterable

from tracecompile.arguments import Doubt

MOST = 64
"""Tensors in doubt, of single steps, from which on a call does wait."""


class Doubts:
    """What is in doubt of the calls so far."""

    def __init__(self) -> None:
        """Doubts nothing."""
        self._open: deque[Doubt] = deque()

    def settle(self, doubts: Iterable[Doubt] = ()) -> None:
        """Takes the doubts of a call, and refuses what is known by now of this one and of those before.

        Raises:
            InvalidInput: An input was not finite.
        """
        self._open.extend(doubts)
        while self._open and (self._open[0].finite.is_here or len(self._open) > MOST):
            self._open.popleft().settle()
