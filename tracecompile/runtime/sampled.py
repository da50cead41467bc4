"""Values at a few steps of every bin, for synapses that do not commute with the mean over time.

A maximum, a normalisation over features: what they make of the mean input is not the mean of what they make. Their
local graphs are evaluated at steps as they were, and their derivatives averaged (``analysis.linearity.wants_steps``).

A bin is divided into shares, of each of which one step is kept: the one that comes last in an order that knows no
period, since neurons fire in periods, and steps at regular distances would see them always, or never.
"""

from __future__ import annotations

from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass, field

from torch import Tensor

from tracecompile.layers import Pair
from tracecompile.runtime.bins import Clock, SequenceClock

SAMPLES = 4
"""Steps of a bin that are kept, one of no more steps whole; of the only bin of a stream half as many or more."""
GOLDEN = 2654435769
"""The golden section of 2**32: multiples of it, modulo 2**32, are evenly spread however many there are (Weyl)."""


@dataclass
class Kept:
    """What is kept of one bin. Its memory is there from the first step on: a short bin takes as much as a long one.

    Attributes:
        steps: By share, which step is kept, counted from the beginning, and its place.
        values: By (value, statistic), (SAMPLES, *shape).
    """

    steps: dict[int, tuple[int, int]] = field(default_factory=dict)
    values: dict[Pair, Tensor] = field(default_factory=dict)

    def put(self, share: int, step: int, values: Mapping[Pair, Tensor]) -> None:
        """Keeps a step as that of a share, in the place of the one that was, if one was."""
        taken = [place for _, place in self.steps.values()]
        place = self.steps[share][1] if share in self.steps else min(set(range(SAMPLES)).difference(taken))
        self.steps[share] = (step, place)
        for pair, value in values.items():
            if pair not in self.values:
                self.values[pair] = value.new_zeros((SAMPLES, *value.shape))
            self.values[pair][place].copy_(value)

    def samples(self) -> list[tuple[int, dict[Pair, Tensor]]]:
        """Returns the steps that are kept, in their order, with their values."""
        found = sorted(self.steps.values())
        return [(step, {pair: values[place] for pair, values in self.values.items()}) for step, place in found]


class Samples:
    """Some steps of every bin.

    Attributes:
        rows: By bin.
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
        self.rows = [Kept() for _ in range(clock.capacity)]

    def due(self, index: int, steps: int) -> list[int]:
        """Returns which of the latest steps, all of one bin, are to be kept."""
        found: dict[int, int] = {}
        for step in range(self.clock.steps - steps, self.clock.steps) if self.pairs else ():
            share = self.share(step, index)
            there = found.get(share, self.rows[index].steps.get(share, (-1, 0))[0])
            if there < 0 or _rank(step) > _rank(there):
                found[share] = step
        return sorted(found.values())

    def put(self, step: int, index: int, values: Mapping[Pair, Tensor]) -> None:
        """Keeps a step of a bin, if it comes last of its share."""
        if self.share(step, index) not in self.rows[index].steps and len(self.rows[index].steps) == SAMPLES:
            self.stride *= 2  # the only bin of a stream has as many shares as there are steps
            self._move([self._emptied(index)], index)
        row, share = self.rows[index], self.share(step, index)
        if share not in row.steps or _rank(step) > _rank(row.steps[share][0]):
            row.put(share, step, {pair: values[pair] for pair in self.pairs})

    def merge(self) -> None:
        """Thins neighbouring bins out, which have become one."""
        emptied = [self._emptied(index) for index in range(len(self.rows))]
        for index in range(0, len(emptied), 2):
            self._move(emptied[index : index + 2], index // 2)

    def _emptied(self, index: int) -> Kept:
        row, self.rows[index] = self.rows[index], Kept()
        return row

    def _move(self, rows: Sequence[Kept], index: int) -> None:
        for step, values in (sample for row in rows for sample in row.samples()):
            self.put(step, index, values)

    def share(self, step: int, index: int) -> int:
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
