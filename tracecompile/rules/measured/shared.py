"""What several derivatives of a core have in common, so that it is computed once.

Spike and next membrane depend on what came before through one value, the membrane before the reset: their derivatives
by any variable differ in one slope, and what that acts on is the same.
"""

from __future__ import annotations

import operator
from collections import Counter
from collections.abc import Sequence

from torch import fx

from tracecompile.layers import Pair

Term = tuple[Pair, fx.Node | None]
"""A slope, and the tangent that it acts on; None for what acts at once."""
Sum = frozenset[tuple[frozenset[tuple[fx.Node, int]], float, fx.Node | None]]
"""What names a sum of terms: the factors of each, how often each occurs, a number, and the tangent."""


class SharedSums:
    """The sums of slopes times tangents that have been written."""

    def __init__(self) -> None:
        """Knows of none."""
        self._factors: dict[Pair, tuple[fx.Node, ...]] = {}
        self._numbers: dict[Pair, float] = {}
        self._written: dict[Sum, fx.Node] = {}

    def take(self, pair: Pair, slope: fx.Node | float) -> None:
        """Takes a slope as the Jacobian has it: a node, which may be a product, or a number."""
        self._factors[pair] = _factors(slope) if isinstance(slope, fx.Node) else ()
        self._numbers[pair] = 1.0 if isinstance(slope, fx.Node) else slope

    def note(self, terms: Sequence[Term], written: fx.Node) -> None:
        """Says that a sum of terms is written."""
        if (name := self._name(terms)) is not None:
            self._written.setdefault(name, written)

    def split(self, terms: Sequence[Term]) -> tuple[fx.Node, fx.Node] | None:
        """Returns a sum of terms as a slope, and a sum that is written; None where it is no such product."""
        for factor in self._factors.get(terms[0][0], ()) if terms else ():
            name = self._name(terms, factor)
            if name is not None and name in self._written:
                return factor, self._written[name]
        return None

    def _name(self, terms: Sequence[Term], but: fx.Node | None = None) -> Sum | None:
        """Returns what names a sum of terms, divided by a factor; None where a term has no such factor."""
        found = []
        for pair, tangent in terms:
            factors = list(self._factors.get(pair, ()))
            if pair not in self._factors or (but is not None and but not in factors):
                return None
            if but is not None:
                factors.remove(but)
            found.append((frozenset(Counter(factors).items()), self._numbers[pair], tangent))
        return frozenset(found)


def is_product(node: fx.Node) -> bool:
    """Tells whether a node is the product of two others."""
    return node.target is operator.mul and all(isinstance(each, fx.Node) for each in node.args)


def _factors(slope: fx.Node) -> tuple[fx.Node, ...]:
    """Returns what a slope is the product of."""
    if not is_product(slope):
        return (slope,)
    return tuple(factor for each in slope.args if isinstance(each, fx.Node) for factor in _factors(each))
