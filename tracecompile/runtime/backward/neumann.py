"""Neumann iterations: what the delayed values of a bin feed back into the same bin."""

from __future__ import annotations

from collections.abc import Callable, Mapping

import torch
from torch import Tensor

from tracecompile.later import Later

LATERAL_TERMS = 2
"""Fewest Neumann iterations of a recurrent block."""
MOST_LATERAL_TERMS = 8
"""Most Neumann iterations of a recurrent block."""
SETTLED = 0.01
"""Relative change below which a recurrent block counts as solved."""

Handed = list[tuple[str, int, Tensor]]
"""Learning signals that a bin hands upstream: (maker of the value, delay, signal)."""


class Neumann:
    """Solves one bin of one recurrent block.

    Every sample iterates on its own, so that its gradient does not depend on what else is in the batch, nor on how a
    batch is split over processes: it rests where it has settled. A sample whose change grows from one iteration to the
    next is not contracting: it keeps its last safe iterate. Values without a first axis in common are one sample's.

    Attributes:
        residual: Last relative change over the samples that contract, a scalar; None where nothing was fed back.
        unsettled: Number of samples that were cut off, a scalar.
    """

    def __init__(self) -> None:
        """Starts with nothing fed back."""
        self.residual: Tensor | None = None
        self.unsettled: Tensor | None = None
        self.still: list[Later] = []
        """Whether any sample moves, after every iteration."""
        self.fed: dict[str, Tensor] = {}
        self.last_change: Tensor | None = None
        self.safe: Tensor | None = None
        self.moving: Tensor | None = None
        """Samples that take the next iterate; the others have settled, or were cut off."""
        self.by_sample = True
        """Whether all values have the samples as their first axis."""

    def run(self, sweep: Callable[[Mapping[str, Tensor]], tuple[Handed, dict[str, Tensor]]]) -> Handed:
        """Iterates until settled.

        Args:
            sweep: Maps what is fed back, by the maker of the values, to (what the bin hands on, what it feeds back).

        Returns:
            What the bin hands upstream and to earlier bins.
        """
        for term in range(MOST_LATERAL_TERMS + 1):
            handed, fed = sweep(self.fed)
            if not fed or term == MOST_LATERAL_TERMS:
                break
            self._advance(fed, may_rest=term >= LATERAL_TERMS)
            if self._rests():
                break
        return handed

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
        change = sum(
            self._square_norms(signal - self.fed.get(name, torch.zeros_like(signal))) for name, signal in fed.items()
        )
        size = sum(self._square_norms(signal) for signal in fed.values())
        assert isinstance(change, Tensor)
        assert isinstance(size, Tensor)
        contracting = torch.isfinite(change)
        if self.last_change is not None:
            contracting &= change <= self.last_change
        # A sample that rests sees the same change once more, up to rounding, and that must not cut it off.
        rests = torch.zeros_like(contracting) if self.moving is None else ~self.moving
        self.safe = contracting if self.safe is None else self.safe & (contracting | rests)
        settled = change <= SETTLED**2 * size if may_rest else torch.zeros_like(contracting)
        self.moving = self.safe & ~rests & ~settled
        for name, signal in fed.items():
            keep = self.moving.reshape(-1, *([1] * (signal.ndim - 1))) if signal.ndim else self.moving.all()
            self.fed[name] = torch.where(keep, signal, self.fed.get(name, torch.zeros_like(signal)))
        self.last_change = change
        left, whole = (torch.where(self.safe, part, torch.zeros_like(part)).sum() for part in (change, size))
        self.residual = (left / whole.clamp_min(torch.finfo(whole.dtype).tiny)).sqrt()
        self.unsettled = (~self.safe).sum()
        self.still.append(Later(self.moving.any()))

    def _take_as_one(self) -> None:
        """Goes on with all values as those of one sample."""
        self.by_sample = False
        if self.last_change is not None and self.safe is not None and self.moving is not None:
            self.last_change = self.last_change.sum().reshape(1)
            self.safe, self.moving = self.safe.all().reshape(1), self.moving.any().reshape(1)

    def _square_norms(self, signal: Tensor) -> Tensor:
        """Returns the squared norm per sample."""
        return signal.square().reshape(signal.shape[0] if self.by_sample and signal.ndim else 1, -1).sum(1)


class Settling:
    """How far the recurrent blocks of one backward pass have settled; reading it waits for the device."""

    def __init__(self) -> None:
        """Knows of no block."""
        self._blocks: dict[str, list[tuple[Tensor, Tensor]]] = {}

    def note(self, block: str, solve: Neumann) -> None:
        """Adds a bin of a block, by the names of its layers, that is solved."""
        bins = self._blocks.setdefault(block, [])
        if solve.residual is not None and solve.unsettled is not None:
            bins.append((solve.residual, solve.unsettled))

    @property
    def residuals(self) -> dict[str, float]:
        """Last relative change of each block, the largest of its bins."""
        return {name: max([0.0, *(float(change) for change, _ in bins)]) for name, bins in self._blocks.items()}

    @property
    def unsettled(self) -> dict[str, int]:
        """Samples of each block for which the iteration stopped contracting and was cut off, the most of its bins."""
        return {name: max([0, *(int(count) for _, count in bins)]) for name, bins in self._blocks.items()}
