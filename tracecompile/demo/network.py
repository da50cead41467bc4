"""The demo's network: a recurrent spiking layer and a leaky readout, in plain PyTorch as a user would write it."""

from __future__ import annotations

from typing import Any

import torch
from torch import nn


class FastSigmoidSpike(torch.autograd.Function):
    """Heaviside step forward, derivative 1 / (1 + 25 |v|)^2 backward (Zenke and Ganguli 2018)."""

    @staticmethod
    def forward(ctx: Any, distance: torch.Tensor) -> torch.Tensor:
        """Returns 1.0 where the membrane is above threshold, else 0.0."""
        ctx.save_for_backward(distance)
        spikes: torch.Tensor = (distance > 0).to(distance.dtype)
        return spikes

    @staticmethod
    def backward(ctx: Any, grad: torch.Tensor) -> torch.Tensor:
        """Returns the gradient times the surrogate derivative."""
        (distance,) = ctx.saved_tensors
        slope: torch.Tensor = 1.0 / (1.0 + 25.0 * distance.abs()) ** 2
        return grad * slope


class DigitNet(nn.Module):
    """Leaky integrate-and-fire neurons with lateral weights, then leaky integrators.

        v_t = leak v_{t-1} + W x_t + V s_{t-1} - s_{t-1},    s_t = v_t > 1      (the reset is not differentiated)
        u_t = leak u_{t-1} + (1 - leak) R s_t,               result = mean of u_t over time

    Args:
        hidden: Number of spiking neurons.
        leak: Share of a membrane that is left after one step.
        seed: Seed of the weights.
    """

    def __init__(self, hidden: int = 128, leak: float = 0.9, seed: int = 0) -> None:
        super().__init__()
        self.hidden, self.leak = hidden, leak
        self.input = nn.Linear(64, hidden)
        self.lateral = nn.Linear(hidden, hidden, bias=False)
        self.readout = nn.Linear(hidden, 10)
        generator = torch.Generator().manual_seed(seed)
        for parameter in self.parameters():
            bound = 1.0 / parameter.shape[-1] ** 0.5
            nn.init.uniform_(parameter, -bound, bound, generator=generator)

    def forward(self, spikes: torch.Tensor) -> torch.Tensor:
        """Returns class scores [batch, 10] for spike trains [time, batch, 64]."""
        batch = spikes.shape[1]
        membrane = spikes.new_zeros(batch, self.hidden)
        fired = spikes.new_zeros(batch, self.hidden)
        score = spikes.new_zeros(batch, 10)
        total = spikes.new_zeros(batch, 10)
        for step in range(spikes.shape[0]):
            current = self.input(spikes[step]) + self.lateral(fired)
            membrane = self.leak * membrane + current - fired.detach()
            fired = FastSigmoidSpike.apply(membrane - 1.0)
            score = self.leak * score + (1.0 - self.leak) * self.readout(fired)
            total = total + score
        return total / spikes.shape[0]
