"""A block of several layers that feed each other: all of them hand signals on to what is below."""

from __future__ import annotations

import copy

import torch
from torch import Tensor, nn

import tracecompile
import tracecompile.nn as snn

SPIKE = snn.fast_sigmoid(4.0)


class Feedback(nn.Module):
    """The upper of two layers feeds the lower one a step later; both read a layer below."""

    def __init__(self) -> None:
        super().__init__()
        self.enter, self.out = nn.Linear(5, 10), nn.Linear(8, 3)
        self.to_lower, self.to_upper = nn.Linear(10, 8), nn.Linear(10, 8)
        self.up, self.down = nn.Linear(8, 8), nn.Linear(8, 8)

    def forward(self, x: Tensor) -> Tensor:
        v = x.new_zeros(x.shape[1], 10)
        lower = upper = back = x.new_zeros(x.shape[1], 8)
        total = x.new_zeros(x.shape[1], 3)
        for x_t in x:
            v = 0.8 * v + 2 * self.enter(x_t)
            below = SPIKE(v - 0.5)
            v = v - 0.5 * below
            lower = 0.9 * lower + 2 * self.to_lower(below) + self.down(back)
            between = SPIKE(lower - 0.5)
            lower = lower - 0.5 * between
            upper = 0.9 * upper + self.up(between) + 2 * self.to_upper(below)
            back = SPIKE(upper - 0.5)
            upper = upper - 0.5 * back
            total = total + self.out(back)
        return total


def test_with_a_bin_per_step_it_is_backpropagation_through_time() -> None:
    torch.manual_seed(0)
    model = Feedback().double()
    net = tracecompile.convert(copy.deepcopy(model), torch.rand(5, 2, 5).double(), bins=8, backend="eager")
    assert any("lower" in layer.name for layer in net.report.layers)
    x, found = torch.rand(8, 3, 5, dtype=torch.double), []
    for run in (net, model):
        run(x).square().sum().backward()
        found.append([parameter.grad for parameter in run.parameters()])
    for one, other in zip(*found, strict=True):
        assert other.any()
        torch.testing.assert_close(one, other, rtol=1e-9, atol=1e-12)
