"""Gradients of what every step of a recurrent block reads, compiled: one product a piece, and equal to autograd's."""

from __future__ import annotations

import copy
from collections.abc import Callable

import pytest
import torch
from torch import Tensor, nn
from torch.nn import functional

import tracecompile
from tracecompile.runtime.engine import compiled, joint
from tracecompile.runtime.engine.backstep import Backstep, trace_backstep
from tracecompile.runtime.engine.kernels import Kernels

Lateral = Callable[[nn.Module, Tensor], Tensor]


class Net(nn.Module):
    """A recurrent layer without spikes, whose lateral connection is given."""

    def __init__(self, lateral: Lateral, image: bool = False) -> None:
        super().__init__()
        self.lateral = lateral
        shape = (3, 3, 3, 3) if image else (3, 3)
        self.weight = nn.Parameter(0.3 * torch.randn(shape))
        self.bias = nn.Parameter(0.3 * torch.randn(3))
        self.mask = nn.Parameter(torch.rand(shape))

    def forward(self, x: Tensor) -> Tensor:
        h, total = torch.zeros_like(x[0]), torch.zeros_like(x[0])
        for x_t in x:
            h = torch.tanh(0.5 * h + x_t + self.lateral(self, h))
            total = total + h
        return total


LATERALS: dict[str, tuple[Lateral, tuple[int, ...]]] = {
    "linear": (lambda net, h: functional.linear(h, net.weight, net.bias), (3,)),
    "linear of more axes": (lambda net, h: functional.linear(h, net.weight, net.bias), (4, 3)),
    "product with a mask": (lambda net, h: h @ (net.weight * net.mask), (3,)),
    "twice": (lambda net, h: functional.linear(torch.sin(h @ net.weight), net.weight), (3,)),
    "convolution": (lambda net, h: functional.conv2d(h, net.weight, net.bias, padding=1), (3, 4, 4)),
}


@pytest.mark.parametrize("name", LATERALS)
def test_one_product_a_piece(name: str, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(compiled, "PIECE", 3)
    monkeypatch.setattr(compiled, "RECURRENT_PIECE", 2)
    # What would be compiled runs as it is: the parts are the same, and no time goes into compiling.
    monkeypatch.setattr(Kernels, "get", lambda self, key, code, arguments: code)
    monkeypatch.setattr(Kernels, "begin", lambda self, key, code, arguments: None)
    seen: list[Backstep] = []

    def noted(*given: object) -> Backstep:
        seen.append(trace_backstep(*given))  # type: ignore[arg-type]
        return seen[-1]

    monkeypatch.setattr(joint, "trace_backstep", noted)
    lateral, shape = LATERALS[name]
    torch.manual_seed(0)
    model = Net(lateral, name == "convolution").double()
    twin = copy.deepcopy(model)
    net = tracecompile.convert(model, torch.randn(4, 2, *shape).double(), rule="exact", backend="inductor", chunk=6)
    x = torch.randn(13, 5, *shape).double()
    net(x).square().sum().backward()
    twin(x).square().sum().backward()
    for ours, theirs in zip(model.parameters(), twin.parameters(), strict=True):
        if theirs.grad is not None:
            assert ours.grad is not None
            torch.testing.assert_close(ours.grad, theirs.grad, rtol=1e-10, atol=1e-12)
    assert seen
    parts = seen[-1].parts
    assert parts.forward is not None
    assert parts.sums.sides, "no product is hoisted"
    assert parts.kept, "a product is computed again"
