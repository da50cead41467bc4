"""How the steps of a sequence fall into time bins."""

from __future__ import annotations

from dataclasses import dataclass


@dataclass(frozen=True)
class Bins:
    """K bins of (nearly) equal length over T steps; step t lies in bin floor(t K / T).

    Attributes:
        steps: T; None while a stream is open, which then has one bin.
        count: K; never more than T.
    """

    steps: int | None
    count: int

    @classmethod
    def over(cls, steps: int, bins: int) -> Bins:
        """Divides ``steps`` steps into at most ``bins`` bins."""
        return cls(steps, max(1, min(bins, steps)))

    def of(self, step: int) -> int:
        """Returns the bin of a step."""
        return 0 if self.steps is None else min(step, self.steps - 1) * self.count // self.steps

    def start(self, index: int) -> int:
        """Returns the first step of a bin."""
        assert self.steps is not None
        return -(-index * self.steps // self.count)

    def widths(self) -> tuple[int, ...]:
        """Returns the number of steps in each bin."""
        return tuple(self.start(i + 1) - self.start(i) for i in range(self.count))

    def overlap(self, delay: int) -> list[list[float]]:
        """Returns the share of each bin's delayed steps that were made in each bin.

        Entry [c][b] is the share of the steps t of bin c with t - delay in bin b; what was made before the sequence began is
        in no bin.
        """
        shares = []
        for c, width in enumerate(self.widths()):
            first, last = self.start(c) - delay, self.start(c) + width - delay
            row = [max(0, min(last, self.start(b + 1)) - max(first, self.start(b))) / width for b in range(self.count)]
            shares.append(row)
        return shares
