"""How the steps of a sequence fall into time bins."""

from __future__ import annotations

import bisect
import sys
from dataclasses import dataclass


@dataclass(frozen=True)
class Bins:
    """Bins of consecutive steps.

    Attributes:
        edges: First step of each bin, then the number of steps.
    """

    edges: tuple[int, ...]

    @classmethod
    def over(cls, steps: int, count: int) -> Bins:
        """Divides a sequence into at most ``count`` bins of (nearly) equal length: step t is in bin floor(t K / T)."""
        count = max(1, min(count, steps))
        return cls(tuple(-(-index * steps // count) for index in range(count + 1)))

    @property
    def count(self) -> int:
        """Number of bins, K."""
        return len(self.edges) - 1

    @property
    def widths(self) -> tuple[int, ...]:
        """Number of steps in each bin."""
        return tuple(after - before for before, after in zip(self.edges[:-1], self.edges[1:], strict=True))

    def of(self, step: int) -> int:
        """Returns the bin of a step."""
        return bisect.bisect_right(self.edges, step, hi=self.count) - 1

    def overlap(self, delay: int) -> list[list[float]]:
        """Returns the share of each bin's delayed steps that were made in each bin.

        Entry [c][b] is the share of the steps t of bin c with t - delay in bin b; what was made before the sequence
        began is in no bin.
        """
        shares = []
        for first, last in zip(self.edges[:-1], self.edges[1:], strict=True):
            made = [
                max(0, min(last - delay, after) - max(first - delay, before))
                for before, after in zip(self.edges[:-1], self.edges[1:], strict=True)
            ]
            shares.append([steps / (last - first) for steps in made])
        return shares


class SequenceClock:
    """Says in which bin the next step of a sequence of known length lies."""

    def __init__(self, bins: Bins) -> None:
        """Starts before the first step."""
        self.bins = bins
        self.capacity = bins.count
        self.steps = 0
        self._slot, self._of_slot = 0, range(0)
        """The slot that was asked for last, and its steps."""

    def must_merge(self) -> bool:
        """Tells whether the slots are full; never, here."""
        return False

    @property
    def next_slot(self) -> int:
        """Slot of the step that comes."""
        if self.steps not in self._of_slot:
            self._slot = self.bins.of(self.steps)
            self._of_slot = range(*self.bins.edges[self._slot : self._slot + 2])
        return self._slot

    def tick(self, steps: int = 1) -> int:
        """Counts steps of one slot, and returns that."""
        slot = self.next_slot
        assert self.bins.edges[slot + 1] >= self.steps + steps, "no piece crosses the edge of a bin"
        self.steps += steps
        return slot

    def merge(self) -> None:
        """Is never needed here."""
        raise AssertionError("a sequence of known length never merges its bins")


class StreamClock:
    """Says in which bin the next step of a stream lies: K slots of one width, which doubles when they are full.

    Attributes:
        capacity: K.
        width: Steps per slot.
        generation: How often neighbours were merged; width is 2 to that power.
        slot: Slot of the last step.
    """

    def __init__(self, capacity: int) -> None:
        """Starts before the first step, with slots of one step."""
        self.capacity = capacity
        self.generation = 0
        self.steps = 0
        self.slot = 0

    @property
    def width(self) -> int:
        """Steps per slot."""
        return 1 << self.generation

    def must_merge(self) -> bool:
        """Tells whether the slots are full; a single slot takes everything."""
        return self.capacity > 1 and self.steps == self.capacity * self.width

    @property
    def room(self) -> int:
        """How many steps come before another slot does."""
        width = 2 * self.width if self.must_merge() else self.width
        return width - self.steps % width if self.capacity > 1 else sys.maxsize

    @property
    def before_merge(self) -> int:
        """How many steps come before slots are merged once more than now."""
        full = self.capacity * self.width
        return (full if self.must_merge() else full - self.steps) if self.capacity > 1 else sys.maxsize

    def merge(self) -> None:
        """Doubles the width."""
        self.generation += 1

    @property
    def next_slot(self) -> int:
        """Slot of the step that comes, if nothing is merged before it."""
        return self.steps // self.width if self.capacity > 1 else 0

    def tick(self, steps: int = 1) -> int:
        """Counts steps of one slot, and returns that."""
        self.slot = self.next_slot
        self.steps += steps
        return self.slot

    @property
    def bins(self) -> Bins:
        """The bins of the steps so far."""
        if self.capacity == 1:
            return Bins((0, self.steps))
        used = -(-self.steps // self.width)
        return Bins(tuple(min(index * self.width, self.steps) for index in range(used + 1)))


Clock = SequenceClock | StreamClock
