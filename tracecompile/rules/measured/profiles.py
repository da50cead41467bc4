"""Means over all neurons of what a core answers, by fine cells of time; see ``tracecompile.rules.measured.horizon``."""

from __future__ import annotations

from collections.abc import Sequence

import torch
from torch import Tensor

from tracecompile.later import placed
from tracecompile.layers import Pair
from tracecompile.rules.sums import merged_weights, padded, pairs_added

GAIN = "gain of "
"""Prefix of the profiles of the answer within a step."""


class Profile:
    """One mean: ``sums`` and the number of steps, ``weights``, by cell."""

    def __init__(self, cells: int) -> None:
        """Is empty."""
        self.sums: Tensor | None = None
        self.weights = [0.0] * cells

    def add(self, means: Tensor, cells: Sequence[int]) -> None:
        """Adds the means of consecutive steps, (steps,), each to its cell."""
        if self.sums is None:
            self.sums = torch.zeros(len(self.weights), dtype=means.dtype, device=means.device)
        if len(cells) == 1:
            self.sums[cells[0]].add_(means[0])
        else:
            self.sums.index_add_(0, placed(cells, torch.int64, means.device), means)
        for cell in cells:
            self.weights[cell] += 1.0

    def merge(self) -> None:
        """Adds neighbouring cells up."""
        self.weights = merged_weights(self.weights)
        if self.sums is not None:
            self.sums = padded(pairs_added(self.sums, 0), 0, len(self.weights))

    def means(self, cells: int) -> Tensor:
        """Returns the mean of the first cells, (cells,)."""
        assert self.sums is not None
        weights = placed(self.weights[:cells], torch.float64, self.sums.device)
        return self.sums[:cells].to(torch.float64) / weights


Profiles = dict[Pair, Profile]
"""By (output, variable) of the responses, and (``gain of <output>``, variable) of the derivatives within a step."""
