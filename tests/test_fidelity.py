"""How close the rules come to backpropagation through time on real digits, as spike trains of 100 steps."""

from __future__ import annotations

import itertools
from typing import Any

import pytest
import torch
from sklearn.datasets import load_digits
from torch import Tensor, nn
from torch.nn import functional as F

import tracecompile
from tracecompile import nn as snn

HIDDEN = 64
LAYERS = 3


class RateCoded(nn.Module):
    """Layers of leaky neurons, and a linear readout of which the mean over time is returned."""

    def __init__(self, detach_reset: bool, layers: int = LAYERS) -> None:
        super().__init__()
        widths = [64, *[HIDDEN] * layers]
        self.synapses = nn.ModuleList([nn.Linear(a, b) for a, b in itertools.pairwise(widths)])
        surrogate = snn.sigmoid(4.0)
        self.neurons = nn.ModuleList(
            [snn.LIF(leak=0.9, detach_reset=detach_reset, surrogate=surrogate) for _ in range(layers)]
        )
        self.readout = nn.Linear(HIDDEN, 10)

    def forward(self, spikes: Tensor) -> Tensor:
        states: list[Tensor | None] = [None] * len(self.neurons)
        outputs = []
        for t in range(spikes.shape[0]):
            signal = spikes[t]
            for index, (synapse, neuron) in enumerate(zip(self.synapses, self.neurons, strict=True)):
                signal, states[index] = neuron(synapse(signal), states[index])
            outputs.append(self.readout(signal))
        return torch.stack(outputs).mean(0)


def batch(steps: int, size: int, generator: torch.Generator) -> tuple[Tensor, Tensor]:
    digits = load_digits()
    chosen = torch.randint(len(digits.target), (size,), generator=generator)
    rates = torch.tensor(digits.data / 16.0, dtype=torch.float32)[chosen]
    return torch.bernoulli(rates.expand(steps, *rates.shape), generator=generator), torch.tensor(digits.target)[chosen]


def trained_a_little(detach_reset: bool, generator: torch.Generator, layers: int = LAYERS) -> RateCoded:
    torch.manual_seed(0)
    model = RateCoded(detach_reset, layers)
    optimizer = torch.optim.Adam(model.parameters(), 2e-3)
    for _ in range(40):
        spikes, labels = batch(20, 32, generator)
        optimizer.zero_grad()
        F.cross_entropy(model(spikes), labels).backward()
        optimizer.step()
    return model


@pytest.mark.parametrize(
    ("options", "detach_reset", "cosine", "low", "high"),
    [
        ({"bins": 1}, False, 0.99, 0.8, 1.25),
        ({"bins": 1}, True, 0.99, 0.8, 1.25),
        ({"rule": "analytic"}, False, 0.9, 0.5, 2.0),
    ],
)
def test_one_mean_over_a_hundred_steps(
    options: dict[str, Any], detach_reset: bool, cosine: float, low: float, high: float
) -> None:
    generator = torch.Generator().manual_seed(0)
    model = trained_a_little(detach_reset, generator)
    spikes, labels = batch(100, 32, generator)
    net = tracecompile.convert(model, spikes, **options)
    found = tracecompile.compare_gradients(model, net, spikes, lambda logits: F.cross_entropy(logits, labels))
    assert len(found.rows) == len(list(model.parameters()))
    for row in found.rows:
        assert row.cosine >= cosine, str(found)
        assert low <= row.norm_ratio <= high, str(found)


# One small network each; examples/fidelity.py has the medians over networks on MNIST. Without the finite-horizon factor
# the norms with one bin and 20 steps are tens of times too large.
@pytest.mark.parametrize("detach_reset", [False, True])
@pytest.mark.parametrize(
    ("steps", "bins", "cosine", "low", "high"),
    [(20, 1, 0.9, 0.5, 1.5), (20, 4, 0.97, 0.7, 2.0), (20, 10, 0.99, 0.8, 1.25), (100, 1, 0.99, 0.7, 1.15)],
)
def test_nine_layers(steps: int, bins: int, cosine: float, low: float, high: float, detach_reset: bool) -> None:
    generator = torch.Generator().manual_seed(0)
    model = trained_a_little(detach_reset, generator, layers=8)
    spikes, labels = batch(steps, 64, generator)
    net = tracecompile.convert(model, spikes, bins=bins)
    found = tracecompile.compare_gradients(model, net, spikes, lambda logits: F.cross_entropy(logits, labels))
    for row in found.rows:
        assert row.cosine >= cosine, str(found)
        assert low <= row.norm_ratio <= high, str(found)
