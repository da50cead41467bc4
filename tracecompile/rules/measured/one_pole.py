"""The leaky neuron that a layer is like on average, from how its bins answer to each other."""

from __future__ import annotations

from collections.abc import Sequence

import torch
from torch import Tensor

from tracecompile.later import placed
from tracecompile.rules.measured.responses import Row

GRID = 257
"""Leaks among which that of a layer is looked up, denser towards one."""


def fitted_leak(rows: dict[int, Row], widths: Sequence[int]) -> Tensor:
    """Returns the leak of a layer per step, a scalar in [0, 1).

    A leaky neuron answers in a bin to a constant current in the bin before by a known share of its answer to the same
    current in the bin itself. The share of the layer, means over its neurons and bins, is looked up among these.

    Args:
        rows: Responses of one output to one current, by bin.
        widths: Steps in each bin.
    """
    device = next(iter(rows.values())).sums.device
    before: list[Tensor] = []
    own: list[Tensor] = []
    for index, row in rows.items():
        if index == 0:
            continue
        own.append(row.sums[-1].mean())
        if row.sums.shape[0] > 1:  # else it is forgotten
            before.append(row.sums[-2].mean())
    leaks = 1.0 - (1.0 - torch.arange(GRID, dtype=torch.float64, device=device) / GRID).square()
    if not before:
        return leaks[0]
    pairs = [(widths[index - 1], widths[index]) for index in rows if index > 0]
    answered = [leaks * answer(leaks, one) * answer(leaks, other) for one, other in pairs]
    shares = torch.stack(answered).sum(0) / torch.stack([summed_answer(leaks, other) for _, other in pairs]).sum(0)
    share = torch.stack(before).to(torch.float64).sum() / torch.stack(own).to(torch.float64).sum()
    share = torch.where(share.isfinite(), share.clamp(shares[0], shares[-1]), shares[0])
    above = torch.searchsorted(shares, share).clamp(1, GRID - 1)
    part = (share - shares[above - 1]) / (shares[above] - shares[above - 1])
    return leaks[above - 1] + part * (leaks[above] - leaks[above - 1])


def answer(leak: Tensor, steps: Tensor | float) -> Tensor:
    """Returns what a leaky neuron holds after so many steps of a current of one; the same is left of it, summed."""
    return (1.0 - leak**steps) / (1.0 - leak)


def summed_answer(leak: Tensor, steps: Tensor | float) -> Tensor:
    """Returns the sum of what it has held in each of these steps."""
    return (steps - leak * answer(leak, steps)) / (1.0 - leak)


class Kernel:
    """How the mean over one stretch of time answers to a current of one in another, of a leaky neuron.

    Attributes:
        answers: By (answering cell, cell of the current), zero where the current comes later.
    """

    def __init__(self, leak: Tensor, edges: Sequence[int]) -> None:
        """Works it out, for cells of time between these steps."""
        first = placed(edges[:-1], torch.float64, leak.device)
        widths = placed(edges[1:], torch.float64, leak.device) - first
        held = answer(leak, widths)
        between = first.unsqueeze(1) - (first + widths - 1.0)
        earlier = torch.where(between > 0, leak ** between.clamp_min(0.0), torch.zeros_like(between))
        answers = earlier * (held / widths).unsqueeze(1) * held
        self.widths = widths
        self.answers = answers + torch.diag(summed_answer(leak, widths) / widths)

    def backwards(self, profile: Tensor) -> Tensor:
        """Returns the profile of the signal on the current, per step, from that of the signal on the answer."""
        return (profile * self.widths) @ self.answers / self.widths
