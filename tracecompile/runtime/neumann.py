"""Neumann iterations: what the delayed values of a bin feed back into the same bin."""

from __future__ import annotations

from collections.abc import Callable, Mapping

import torch
from torch import Tensor

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

    A sample whose change grows from one iteration to the next is not contracting: it keeps its last safe iterate.

    Attributes:
        residual: Last relative change of the samples that contract.
        unsettled: Number of samples that were cut off.
    """

    def __init__(self) -> None:
        """Starts with nothing fed back."""
        self.residual, self.unsettled = 0.0, 0
        self.fed: dict[str, Tensor] = {}
        self.last_change: Tensor | None = None
        self.safe: Tensor | None = None

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
            self._advance(fed)
            if term >= LATERAL_TERMS and self.residual < SETTLED:
                break
        return handed

    def _advance(self, fed: dict[str, Tensor]) -> None:
        """Takes the next iterate for the samples that still contract."""
        change = sum(
            _square_norms(signal - self.fed.get(name, torch.zeros_like(signal))) for name, signal in fed.items()
        )
        size = sum(_square_norms(signal) for signal in fed.values())
        assert isinstance(change, Tensor)
        assert isinstance(size, Tensor)
        contracting = torch.isfinite(change)
        if self.last_change is not None:
            contracting &= change <= self.last_change
        self.safe = contracting if self.safe is None else self.safe & contracting
        for name, signal in fed.items():
            keep = self.safe.reshape(-1, *([1] * (signal.ndim - 1))) if signal.ndim else self.safe.all()
            self.fed[name] = torch.where(keep, signal, self.fed.get(name, torch.zeros_like(signal)))
        self.last_change = change
        moving = torch.where(self.safe, change, torch.zeros_like(change)).sum()
        self.residual = float((moving / size.sum().clamp_min(torch.finfo(size.dtype).tiny)).sqrt())
        self.unsettled = int((~self.safe).sum())


def _square_norms(signal: Tensor) -> Tensor:
    """Returns the squared norm per sample."""
    return signal.square().reshape(signal.shape[0] if signal.ndim else 1, -1).sum(1)
