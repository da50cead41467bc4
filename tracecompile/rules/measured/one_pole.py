"""The leaky neuron that a layer is like on average, from how its bins answer to each other."""

from __future__ import annotations

from collections import Counter
from collections.abc import Sequence

import torch
from torch import Tensor

from tracecompile.later import placed
from tracecompile.rules.measured.responses import Row

GRID = 257
"""Leaks among which that of a layer is looked up, denser towards one."""


def fitted_leak(rows: dict[int, Row], widths: Sequence[int]) -> Tensor:
    """Returns the leak of a layer per step, by sample, each in [0, 1).

    A leaky neuron answers in a bin to a constant current in the bin before by a known share of its answer to the same
    current in the bin itself. The share of the layer, means over its neurons and bins, is looked up among these.

    Args:
        rows: Responses of one output to one current, by bin.
        widths: Steps in each bin.
    """
    later = {index: row for index, row in rows.items() if index > 0}
    own = [_by_sample(row.sums[-1]) for row in later.values()]
    before = [_by_sample(row.sums[-2]) for row in later.values() if row.sums.shape[0] > 1]  # else it is forgotten
    device = next(iter(rows.values())).sums.device
    leaks = 1.0 - (1.0 - torch.arange(GRID, dtype=torch.float64, device=device) / GRID).square()
    if not before:
        return leaks[:1]
    # Most bins are of one width.
    pairs = Counter((widths[index - 1], widths[index]) for index in later)
    answered = [count * leaks * answer(leaks, one) * answer(leaks, next_) for (one, next_), count in pairs.items()]
    held = [count * summed_answer(leaks, width) for (_, width), count in pairs.items()]
    shares = torch.stack(answered).sum(0) / torch.stack(held).sum(0)
    share = torch.stack(before).sum(0) / torch.stack(own).sum(0)
    share = torch.where(share.isfinite(), share.clamp(shares[0], shares[-1]), shares[0])
    above = torch.searchsorted(shares, share).clamp(1, GRID - 1)
    part = (share - shares[above - 1]) / (shares[above] - shares[above - 1])
    return leaks[above - 1] + part * (leaks[above] - leaks[above - 1])


def _by_sample(values: Tensor) -> Tensor:
    """Returns the means over all but the first axis."""
    return values.reshape(values.shape[0] if values.ndim else 1, -1).mean(1).to(torch.float64)


def answer(leak: Tensor, steps: Tensor | float) -> Tensor:
    """Returns what a leaky neuron holds after so many steps of a current of one; the same is left of it, summed."""
    return (1.0 - leak**steps) / (1.0 - leak)


def summed_answer(leak: Tensor, steps: Tensor | float) -> Tensor:
    """Returns the sum of what it has held in each of these steps."""
    return (steps - leak * answer(leak, steps)) / (1.0 - leak)


class Kernel:
    """How the mean over one stretch of time answers to a current of one in another, of leaky neurons.

    Attributes:
        answers: By (sample, answering cell, cell of the current), zero where the current comes later.
    """

    def __init__(self, leak: Tensor, edges: Sequence[int]) -> None:
        """Works it out.

        Args:
            leak: By sample.
            edges: Of the cells of time.
        """
        first = placed(edges[:-1], torch.int64, leak.device)
        widths = placed(edges[1:], torch.int64, leak.device) - first
        between = first.unsqueeze(1) - (first + widths - 1)
        leaks, self.widths = leak.unsqueeze(1), widths.to(torch.float64)
        powers = leaks ** torch.arange(edges[-1], dtype=torch.float64, device=leak.device)
        powers[:, 0] = 0.0  # what acts in the cell itself comes below
        held = answer(leaks, self.widths)
        self.answers = powers[:, between.clamp_min(0)].mul_((held / self.widths).unsqueeze(2)).mul_(held.unsqueeze(1))
        self.answers.diagonal(dim1=1, dim2=2).copy_(summed_answer(leaks, self.widths) / self.widths)

    def backwards(self, profile: Tensor) -> Tensor:
        """Returns the profile of the signal on the current, per step, from that of the signal on the answer."""
        return ((profile * self.widths).unsqueeze(1) @ self.answers).squeeze(1) / self.widths
