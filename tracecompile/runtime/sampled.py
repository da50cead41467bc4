"""Values at a few steps of every bin, for synapses that do not commute with the mean over time.

A product of spikes with spikes, a maximum, a normalisation over features: what they make of the mean input is not the
mean of what they make. Their local graphs are evaluated at steps as they were, and their derivatives averaged.

A bin is divided into shares, of each of which one step is kept: the one that comes last in an order that knows no
period, since neurons fire in periods, and steps at regular distances would see them always, or never.
"""

from __future__ import annotations

from collections.abc import Iterable, Mapping
from dataclasses import dataclass

from torch import Tensor

from tracecompile.layers import Pair
from tracecompile.runtime.bins import Clock, SequenceClock

SAMPLES = 4
"""Steps of a bin that are kept, one of no more steps whole; of the only bin of a stream up to twice as many."""
GOLDEN = 2654435769
"""The golden section of 2**32: multiples of it, modulo 2**32, are evenly spread however many there are (Weyl)."""


@dataclass(frozen=True)
class Sample:
    """One step.

    Attributes:
        step: Which one, counted from the beginning.
        values: By (value, statistic).
    """

    step: int
    values: Mapping[Pair, Tensor]


class Samples:
    """Some steps of every bin.

    Attributes:
        rows: By bin and share, the step that is kept.
        stride: Steps of a share, in a stream of a single bin.
    """

    def __init__(self, pairs: Iterable[Pair], clock: Clock) -> None:
        """Has no step yet.

        Args:
            pairs: What is kept of each step.
            clock: Which bin each step falls into.
        """
        self.pairs = list(dict.fromkeys(pairs))
        self.clock, self.stride = clock, 1
        self.rows: list[dict[int, Sample]] = [{} for _ in range(clock.capacity)]

    def due(self, index: int, steps: int) -> list[int]:
        """Returns which of the latest steps, all of one bin, are to be kept."""
        found: dict[int, int] = {}
        for step in range(self.clock.steps - steps, self.clock.steps) if self.pairs else ():
            share = self._share(step, index)
            there = found.get(share, self.rows[index][share].step if share in self.rows[index] else -1)
            if there < 0 or _rank(step) > _rank(there):
                found[share] = step
        return sorted(found.values())

    def take(self, step: int, index: int, values: Mapping[Pair, Tensor]) -> None:
        """Keeps a step of a bin."""
        self.put(index, [Sample(step, {pair: values[pair].clone() for pair in self.pairs})])
        if len(self.rows[index]) == 2 * SAMPLES:
            self.stride *= 2
            self.put(index, self._emptied(index))

    def put(self, index: int, samples: Iterable[Sample]) -> None:
        """Keeps of each share the step that comes last."""
        row = self.rows[index]
        for one in samples:
            share = self._share(one.step, index)
            if share not in row or _rank(one.step) > _rank(row[share].step):
                row[share] = one

    def merge(self) -> None:
        """Thins neighbouring bins out, which have become one."""
        for index in range(len(self.rows)):
            self.put(index // 2, self._emptied(index))

    def _emptied(self, index: int) -> list[Sample]:
        samples = list(self.rows[index].values())
        self.rows[index] = {}
        return samples

    def _share(self, step: int, index: int) -> int:
        """Returns the share of a bin that a step lies in."""
        clock = self.clock
        if isinstance(clock, SequenceClock):
            begin, width = clock.bins.edges[index], clock.bins.widths[index]
        elif clock.capacity == 1:
            return step // self.stride
        else:
            begin, width = index * clock.width, clock.width
        return (step - begin) * min(SAMPLES, width) // width


def _rank(step: int) -> int:
    return step * GOLDEN % 2**32
