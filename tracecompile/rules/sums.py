"""Sums over the steps of each time bin, and what bins need to merge in pairs."""

from __future__ import annotations

import torch
from torch import Tensor


class BinSums:
    """The sums of one trace, one per bin, inverted to the mean input.

    A decaying trace, tr <- d tr + x, is inverted by ``tr (1 - d) / (1 - d**n)`` after n steps, the start-up correction
    included; one without decay by ``tr / n``. Both are tr divided by the same sum over ones, which is kept as
    ``weights``.
    """

    def __init__(self, decay: float | None, bins: int) -> None:
        """Has no bin yet."""
        self.decay = decay
        self.rows: list[Tensor | None] = [None] * bins
        self.weights = [0.0] * bins

    def fold(self, total: Tensor, index: int, steps: int) -> None:
        """Adds what has accrued over the latest steps of the bin ``index``."""
        row = self.rows[index]
        if row is not None:
            total = total + (row if self.decay is None else row * self.decay**steps)
        self.rows[index] = total
        self.weights[index] = folded_weight(self.weights[index], self.decay, steps)

    def merge(self) -> None:
        """Adds neighbouring bins up: bins 2 i and 2 i + 1 become bin i."""
        self.weights = merged_weights(self.weights)
        merged: list[Tensor | None] = []
        for index in range(0, len(self.rows), 2):
            found = [row for row in self.rows[index : index + 2] if row is not None]
            merged.append(found[0] + found[1] if len(found) == 2 else found[0] if found else None)
        self.rows = merged + [None] * (len(self.rows) - len(merged))

    def mean(self, index: int) -> Tensor:
        """Returns the mean input of a bin, with the shape of one step's value."""
        row = self.rows[index]
        assert row is not None
        return row / self.weights[index]


def folded_weight(weight: float, decay: float | None, steps: int) -> float:
    """Returns the sum over ones of so many more steps."""
    if decay is None:
        return weight + steps
    for _ in range(steps):
        weight = weight * decay + 1.0
    return weight


def merged_weights(weights: list[float]) -> list[float]:
    """Returns the weights of bins that were merged in pairs."""
    merged = [sum(weights[index : index + 2]) for index in range(0, len(weights), 2)]
    return merged + [0.0] * (len(weights) - len(merged))


def pairs_added(values: Tensor, axis: int) -> Tensor:
    """Returns the sums of neighbours 2 i and 2 i + 1 along an axis; a last one without a neighbour stays."""
    even, odd = values.unfold(axis, 1, 2).squeeze(-1), values.narrow(axis, 1, values.shape[axis] - 1)
    total = even.clone()
    if values.shape[axis] > 1:
        odd = odd.unfold(axis, 1, 2).squeeze(-1)
        total.narrow(axis, 0, odd.shape[axis]).add_(odd)
    return total


def padded(values: Tensor, axis: int, size: int) -> Tensor:
    """Returns values with zeros behind them along an axis, up to a size."""
    missing = list(values.shape)
    missing[axis] = size - values.shape[axis]
    if missing[axis] == 0:
        return values
    return torch.cat([values, values.new_zeros(missing)], axis)
