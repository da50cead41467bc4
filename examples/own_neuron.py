"""A neuron of one's own, converted without change: threshold adaptation, own surrogate, own time loop.

    python examples/own_neuron.py

Nothing below imports tracecompile but ``main``: this is how the model would be written, and trained by backpropagation
through time, without it.
"""

from __future__ import annotations

import argparse
from collections.abc import Sequence
from typing import Any

import torch
from torch import nn
from torch.nn import functional

import tracecompile


class TriangleSpike(torch.autograd.Function):
    """A spike above threshold; a triangle of half-width 1 as its derivative (Bellec et al. 2018)."""

    @staticmethod
    def forward(ctx: Any, distance: torch.Tensor) -> torch.Tensor:
        ctx.save_for_backward(distance)
        return (distance > 0).to(distance.dtype)

    @staticmethod
    def backward(ctx: Any, grad: torch.Tensor) -> torch.Tensor:
        (distance,) = ctx.saved_tensors
        return 0.5 * grad * torch.clamp(1.0 - distance.abs(), min=0.0)


class AdaptiveNet(nn.Module):
    """Neurons whose threshold rises with every spike and relaxes slowly.

        v_t = leak v_{t-1} + W x_t - s_{t-1} A_{t-1},    A_t = 1 + strength a_t,    a_t = relax a_{t-1} + s_{t-1}

    ``leak`` and ``strength`` are learned, one value per neuron.
    """

    def __init__(self, inputs: int = 20, hidden: int = 64, classes: int = 4, relax: float = 0.96) -> None:
        super().__init__()
        self.relax = relax
        self.synapse = nn.Linear(inputs, hidden)
        self.leak = nn.Parameter(torch.empty(hidden).uniform_(0.8, 0.95))
        self.strength = nn.Parameter(torch.full((hidden,), 0.1))
        self.readout = nn.Linear(hidden, classes)

    def forward(self, spikes: torch.Tensor) -> torch.Tensor:
        """Returns scores [batch, classes] for spikes [time, batch, inputs]."""
        membrane = spikes.new_zeros(spikes.shape[1], self.leak.shape[0])
        adaptation = torch.zeros_like(membrane)
        fired = torch.zeros_like(membrane)
        threshold = torch.ones_like(membrane)
        total = spikes.new_zeros(spikes.shape[1], self.readout.out_features)
        for x in spikes:
            membrane = self.leak * membrane + self.synapse(x) - fired * threshold
            adaptation = self.relax * adaptation + fired
            threshold = 1.0 + self.strength * adaptation
            fired = TriangleSpike.apply(membrane - threshold)
            total = total + self.readout(fired)
        return total / spikes.shape[0]


def main(argv: Sequence[str] | None = None) -> float:
    """Converts the network and compares gradients; returns the lowest cosine over all parameters."""
    parser = argparse.ArgumentParser(description="Convert a hand-written adaptive neuron and compare its gradients.")
    parser.add_argument("--steps", type=int, default=200)
    parser.add_argument("--batch", type=int, default=32)
    parser.add_argument("--hidden", type=int, default=64)
    parser.add_argument("--seed", type=int, default=0)
    options = parser.parse_args(argv)
    torch.manual_seed(options.seed)
    model = AdaptiveNet(hidden=options.hidden)
    rates = torch.rand(options.batch, 20)
    spikes = torch.bernoulli(rates.expand(options.steps, -1, -1))
    labels = torch.randint(4, (options.batch,))

    net = tracecompile.convert(model, spikes)
    print(net.report)
    comparison = tracecompile.compare_gradients(
        model, net, (spikes,), lambda scores: functional.cross_entropy(scores, labels)
    )
    print(comparison)
    with torch.no_grad():
        same = torch.equal(model(spikes), net(spikes))
    worst = comparison.worst
    print(f"outputs equal bit for bit: {same}; lowest cosine: {worst.cosine:.4f} ({worst.parameter})")
    return worst.cosine


if __name__ == "__main__":
    main()
