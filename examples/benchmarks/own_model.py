"""A model of one's own in the benchmark: neurons whose threshold adapts, written without tracecompile.

    tracecompile bench examples/benchmarks/own_model.py:AdaptiveNet --steps 100,1000

``example_inputs`` says what the model takes; ``--steps`` cuts or repeats it in time.
"""

from __future__ import annotations

from typing import Any

import torch
from torch import nn


class Spike(torch.autograd.Function):
    """A spike above threshold; derivative of a fast sigmoid backward."""

    @staticmethod
    def forward(ctx: Any, distance: torch.Tensor) -> torch.Tensor:
        ctx.save_for_backward(distance)
        return (distance > 0).to(distance.dtype)

    @staticmethod
    def backward(ctx: Any, grad: torch.Tensor) -> torch.Tensor:
        (distance,) = ctx.saved_tensors
        return grad / (1.0 + 10.0 * distance.abs()) ** 2


class AdaptiveNet(nn.Module):
    """One layer of adaptive neurons with lateral weights; mean scores [batch, 5] of spikes [time, batch, 40]."""

    def __init__(self, hidden: int = 128) -> None:
        super().__init__()
        self.synapse, self.lateral = nn.Linear(40, hidden), nn.Linear(hidden, hidden, bias=False)
        self.leak = nn.Parameter(torch.full((hidden,), 0.9))
        self.readout = nn.Linear(hidden, 5)

    def forward(self, spikes: torch.Tensor) -> torch.Tensor:
        membrane = spikes.new_zeros(spikes.shape[1], self.leak.shape[0])
        adaptation, fired = torch.zeros_like(membrane), torch.zeros_like(membrane)
        total = spikes.new_zeros(spikes.shape[1], 5)
        for x in spikes:
            membrane = self.leak * membrane + self.synapse(x) + self.lateral(fired) - fired.detach()
            adaptation = 0.95 * adaptation + fired
            fired = Spike.apply(membrane - 0.5 - 0.1 * adaptation)
            total = total + self.readout(fired)
        return total / spikes.shape[0]


def example_inputs() -> torch.Tensor:
    return (torch.rand(100, 16, 40, generator=torch.Generator().manual_seed(0)) < 0.2).float()
