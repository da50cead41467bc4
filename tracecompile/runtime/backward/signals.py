"""Learning signals, by where in time they fall."""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from dataclasses import dataclass

import torch
from torch import Tensor

from tracecompile.layers import Source
from tracecompile.runtime.bins import Bins

AtOnce = dict[str, Tensor]
"""Learning signals on values of one step, by the node that made them."""

UNEVEN = 0.25
"""Signals that vary within the bins by more than this share of their energy are taken step by step."""


@dataclass(frozen=True)
class Signal:
    """A learning signal on all values that were read in one bin.

    Attributes:
        source: What was read.
        index: The bin.
        value: dL/d(mean value in the bin), the sum of dL/d(value) over its steps.
    """

    source: Source
    index: int
    value: Tensor


@dataclass(frozen=True)
class TimedSignal:
    """A learning signal on the values of single steps.

    Attributes:
        source: What was read.
        first: The step to which the first of ``values`` belongs.
        values: dL/d(value) of this step and the next ones, (steps, *shape of one step's value).
    """

    source: Source
    first: int
    values: Tensor

    def at(self, step: int) -> Tensor | None:
        """Returns the signal on one step's value."""
        index = step - self.first
        return self.values[index] if 0 <= index < self.values.shape[0] else None


def by_bin(source: Source, values: Tensor, bins: Bins) -> Iterator[Signal]:
    """Sums the signals (steps, *shape) on the values of all steps over each bin."""
    for index, part in enumerate(values.split(list(bins.widths))):
        yield Signal(source, index, part.sum(0))


def is_uneven(values: Tensor, bins: Bins) -> bool:
    """Tells whether signals (steps, *shape) differ so much within the bins that their means do not stand for them."""
    values = values.detach().to(torch.promote_types(values.dtype, torch.float32))
    total = values.square().sum().double()
    parts = values.split(list(bins.widths))
    explained = torch.stack([part.sum(0).square().sum().double() / part.shape[0] for part in parts]).sum()
    return bool(total - explained > UNEVEN * total)  # one look at the values, for which a device is waited for


def only_last(values: Tensor) -> bool:
    """Tells whether there is a signal on the last step alone."""
    return not bool(values[:-1].any())


def at_step(timed: Sequence[TimedSignal], step: int) -> AtOnce:
    """Returns the signals on one step's values by the node that made them."""
    found: AtOnce = {}
    for given in timed:
        signal = given.at(step)
        if signal is not None:
            origin = given.source.origin
            found[origin] = found[origin] + signal if origin in found else signal
    return found


def of_all_steps(timed: Sequence[TimedSignal], origins: Sequence[str], steps: int) -> dict[str, Tensor]:
    """Returns the signals on the values that each node made, (steps, *shape)."""
    found: dict[str, Tensor] = {}
    for given in timed:
        origin = given.source.origin
        if origin in origins:
            if origin not in found:
                found[origin] = given.values.new_zeros((steps, *given.values.shape[1:]))
            kept = given.values[max(0, -given.first) :]
            found[origin][max(0, given.first) :][: len(kept)] += kept
    return found
