"""One sample without a batch axis: groups of neurons of other widths drive each other through delayed spikes."""

from __future__ import annotations

import pytest
import torch
from torch import Tensor, nn

import tracecompile
from runtime.nets import INPUTS, Fire, assert_same, gradients, twins


class Ring(nn.Module):
    """Groups of 2, 6 and 4, each driven by what the one before has fired a step ago."""

    def __init__(self) -> None:
        super().__init__()
        self.enter, self.one, self.two, self.three = (
            nn.Linear(INPUTS, 2),
            nn.Linear(2, 6),
            nn.Linear(6, 4),
            nn.Linear(4, 2),
        )

    def forward(self, x: Tensor) -> Tensor:
        u, v, w = x.new_zeros(2), x.new_zeros(6), x.new_zeros(4)
        a, b, c, total = u, v, w, x.new_zeros(())
        for x_t in x:
            u = 0.9 * u + 3 * self.enter(x_t) + self.three(c) - a
            v = 0.8 * v + 3 * self.one(a) - b
            w = 0.9 * w + 3 * self.two(b) - c
            a, b, c = Fire.apply(u - 0.3), Fire.apply(v - 0.3), Fire.apply(w - 0.3)
            total = total + a.sum() + 0.5 * b.sum() + 0.3 * c.sum()
        return total


class Brake(nn.Module):
    """A single neuron, a number, inhibits a group that excites it."""

    def __init__(self) -> None:
        super().__init__()
        self.enter, self.up, self.down = nn.Linear(INPUTS, 4), nn.Linear(4, 1), nn.Parameter(torch.tensor(0.7))

    def forward(self, x: Tensor) -> Tensor:
        v, u, z, s, total = x.new_zeros(4), x.new_zeros(()), x.new_zeros(4), x.new_zeros(()), x.new_zeros(())
        for x_t in x:
            v = 0.9 * v + 3 * self.enter(x_t) - self.down * s - z
            u = 0.8 * u + self.up(z).squeeze(-1) + z.sum() - s
            z, s = Fire.apply(v - 0.3), Fire.apply(u - 0.2)
            total = total + z.sum() + s
        return total


@pytest.mark.parametrize("kind", [Ring, Brake])
@pytest.mark.parametrize("bins", [2, 4, 14])
def test_groups_of_several_widths_are_trained(kind: type[nn.Module], bins: int) -> None:
    model, twin = twins(kind)
    net = tracecompile.convert(model, torch.rand(6, INPUTS).double(), bins=bins, backend="eager")
    x = torch.rand(14, INPUTS).double()
    for module in (net, twin):
        module(x).square().backward()
    found, wanted = gradients(model), gradients(twin)
    if bins == len(x):
        assert_same(found, wanted)
    one, other = (torch.cat([value.flatten() for value in each.values()]) for each in (found, wanted))
    assert float(torch.cosine_similarity(one, other, dim=0)) > 0.7
