"""Neumann iterations: what the delayed values of a bin feed back into the same bin."""

from __future__ import annotations

from collections.abc import Callable, Mapping
from dataclasses import dataclass

import torch
from torch import Tensor

from tracecompile.later import Later

LATERAL_TERMS = 2
"""Fewest Neumann iterations of a recurrent block."""
MOST_LATERAL_TERMS = 8
"""Most Neumann iterations of a recurrent block."""
SETTLED = 0.01
"""Relative change below which a recurrent block counts as solved."""


@dataclass(frozen=True)
class Outcome:
    """How far one bin of one recurrent block has settled, by sample.

    Attributes:
        safe: Whether the sample contracts.
        change: Square of its last change.
        size: Square of what that came to.
    """

    safe: Tensor
    change: Tensor
    size: Tensor

    @property
    def residual(self) -> float:
        """Last relative change over the samples that contract."""
        left, whole = (torch.where(self.safe, part, 0.0).sum() for part in (self.change, self.size))
        return float((left / whole.clamp_min(torch.finfo(whole.dtype).tiny)).sqrt())

    @property
    def unsettled(self) -> int:
        """Number of samples that were cut off."""
        return int((~self.safe).sum())


class Neumann:
    """Solves one bin of one recurrent block.

    Every sample iterates on its own, so that its gradient does not depend on what else is in the batch, nor on how a
    batch is split over processes: it rests where it has settled. A sample whose change grows from one iteration to the
    next is not contracting: it keeps its last safe iterate. Values without a first axis in common are one sample's.
    """

    def __init__(self) -> None:
        """Starts with nothing fed back."""
        self.still: list[Later] = []
        """Whether any sample moves, after every iteration."""
        self.fed: dict[str, Tensor] = {}
        self.last_change: Tensor | None = None
        self.last_size: Tensor | None = None
        self.safe: Tensor | None = None
        self.moving: Tensor | None = None
        """Samples that take the next iterate; the others have settled, or were cut off."""
        self.by_sample = True
        """Whether all values have the samples as their first axis."""

    def run(self, sweep: Callable[[Mapping[str, Tensor]], dict[str, Tensor]]) -> None:
        """Iterates until settled; what was swept last is the solution.

        Args:
            sweep: Maps what is fed back, by the maker of the values, to what the bin feeds back then.
        """
        for term in range(MOST_LATERAL_TERMS + 1):
            fed = sweep(self.fed)
            if not fed or term == MOST_LATERAL_TERMS:
                break
            self._advance(fed, may_rest=term >= LATERAL_TERMS)
            if self._rests():
                break

    def _rests(self) -> bool:
        """Tells whether all samples rest, and will: a device that says so late has swept in vain."""
        while self.still and self.still[0].is_here:
            if not self.still.pop(0).get():
                return True
        return False

    def _advance(self, fed: dict[str, Tensor], may_rest: bool) -> None:
        """Takes the next iterate for the samples that still move."""
        if self.by_sample and len({signal.shape[:1] for signal in (*fed.values(), *self.fed.values())}) > 1:
            self._take_as_one()
        news = {name: signal - self.fed[name] if name in self.fed else signal for name, signal in fed.items()}
        change, size = self._square_norms(news), self._square_norms(fed)
        contracting = torch.isfinite(change)
        if self.last_change is not None:
            contracting &= change <= self.last_change
        moving = contracting
        if self.safe is not None and self.moving is not None:
            # A sample that rests sees the same change once more, up to rounding, and that must not cut it off.
            contracting = self.safe & (contracting | ~self.moving)
            moving = contracting & self.moving
        self.safe = contracting
        self.moving = moving & ~(change <= SETTLED**2 * size) if may_rest else moving
        for name, signal in fed.items():
            keep = self.moving.reshape(-1, *([1] * (signal.ndim - 1))) if signal.ndim else self.moving.all()
            self.fed[name] = torch.where(keep, signal, self.fed.get(name, 0.0))
        self.last_change, self.last_size = change, size
        self.still.append(Later(self.moving.any()))

    @property
    def outcome(self) -> Outcome | None:
        """How far it has settled; None where nothing was fed back."""
        if self.safe is None or self.last_change is None or self.last_size is None:
            return None
        return Outcome(self.safe, self.last_change, self.last_size)

    def _take_as_one(self) -> None:
        """Goes on with all values as those of one sample."""
        self.by_sample = False
        if self.last_change is not None and self.safe is not None and self.moving is not None:
            self.last_change = self.last_change.sum().reshape(1)
            self.safe, self.moving = self.safe.all().reshape(1), self.moving.any().reshape(1)

    def _square_norms(self, signals: Mapping[str, Tensor]) -> Tensor:
        """Returns the squared norm of some signals together, per sample."""
        total: Tensor | None = None
        for signal in signals.values():
            rows = signal.square().reshape(signal.shape[0] if self.by_sample and signal.ndim else 1, -1).sum(1)
            total = rows if total is None else total + rows
        assert total is not None
        return total


class Settling:
    """How far the recurrent blocks of one backward pass have settled; reading it waits for the device."""

    def __init__(self) -> None:
        """Knows of no block."""
        self._blocks: dict[str, list[Outcome]] = {}

    def note(self, block: str, solve: Neumann) -> None:
        """Adds a bin of a block, by the names of its layers, that is solved."""
        bins = self._blocks.setdefault(block, [])
        if (outcome := solve.outcome) is not None:
            bins.append(outcome)

    @property
    def residuals(self) -> dict[str, float]:
        """Last relative change of each block, the largest of its bins."""
        return {name: max([0.0, *(outcome.residual for outcome in bins)]) for name, bins in self._blocks.items()}

    @property
    def unsettled(self) -> dict[str, int]:
        """Samples of each block for which the iteration stopped contracting and was cut off, the most of its bins."""
        return {name: max([0, *(outcome.unsettled for outcome in bins)]) for name, bins in self._blocks.items()}
