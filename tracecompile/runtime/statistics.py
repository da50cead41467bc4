"""Sums over the steps of each time bin: traces of the inputs, and what bins need to merge in pairs."""

from __future__ import annotations

import torch
from torch import Tensor

from tracecompile.layers import Trace


def accumulator_dtype(dtype: torch.dtype) -> torch.dtype:
    """Returns the precision in which statistics of a value are kept: never below float32."""
    return torch.promote_types(dtype, torch.float32)


class TraceBuffer:
    """The decaying sum of one source per bin: tr <- d tr + x, inverted to the mean input.

    The inverse is ``tr (1 - d) / (1 - d**n)`` after n steps, the start-up correction included; with no decay, tr / n.
    Both are tr divided by the same sum over ones, which is kept as ``weights``.
    """

    def __init__(self, trace: Trace, bins: int) -> None:
        """Makes an empty trace with one slot per bin; the buffer itself is made at the first step."""
        self.decay = trace.decay
        self.bins = bins
        self.sums: Tensor | None = None
        self.weights = [0.0] * bins

    def add(self, value: Tensor, index: int) -> None:
        """Adds one step's value, of any shape, to the bin ``index``."""
        sums = self._sums_for(value)
        if self.decay is not None:
            sums[index].mul_(self.decay)
            self.weights[index] *= self.decay
        sums[index].add_(value)
        self.weights[index] += 1.0

    def add_steps(self, values: Tensor, index: int) -> None:
        """Adds the values of consecutive steps, (steps, *shape), to the bin ``index``."""
        sums, steps = self._sums_for(values[0]), values.shape[0]
        if self.decay is None:
            sums[index].add_(values.sum(0, dtype=sums.dtype))
            self.weights[index] += steps
            return
        factors = [self.decay ** (steps - 1 - step) for step in range(steps)]
        weights = torch.tensor(factors, dtype=sums.dtype, device=sums.device)
        sums[index].mul_(self.decay**steps).add_(torch.tensordot(weights, values.to(sums.dtype), 1))
        self.weights[index] = self.weights[index] * self.decay**steps + sum(factors)

    def add_each(self, values: Tensor, bins: list[int]) -> None:
        """Adds the values of several steps, (steps, *shape), each to its own bin."""
        sums = self._sums_for(values[0])
        sums.index_add_(0, torch.tensor(bins, device=sums.device), values.to(sums.dtype))
        for index in bins:
            self.weights[index] += 1.0

    def _sums_for(self, value: Tensor) -> Tensor:
        if self.sums is None:
            self.sums = torch.zeros(
                (self.bins, *value.shape), dtype=accumulator_dtype(value.dtype), device=value.device
            )
        return self.sums

    def merge(self) -> None:
        """Adds neighbouring bins up: bins 2 i and 2 i + 1 become bin i."""
        self.weights = merged_weights(self.weights)
        if self.sums is not None:
            self.sums = padded(pairs_added(self.sums, 0), 0, self.bins)

    def mean(self, index: int) -> Tensor:
        """Returns the mean input of a bin, with the shape of one step's value."""
        assert self.sums is not None
        return self.sums[index] / self.weights[index]


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


def merged_weights(weights: list[float]) -> list[float]:
    """Returns the weights of bins that were merged in pairs."""
    merged = [sum(weights[index : index + 2]) for index in range(0, len(weights), 2)]
    return merged + [0.0] * (len(weights) - len(merged))
