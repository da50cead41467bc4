"""Batch norms in training over many steps at once: values, gradients and statistics are those of single steps."""

from __future__ import annotations

import copy
from collections.abc import Callable
from typing import Any

import pytest
import torch
from torch import Tensor, nn

import tracecompile
import tracecompile.nn as snn
from tracecompile.runtime import span
from tracecompile.runtime.normed import OverSteps

STEPS, CHANNELS = 13, 4


class Net(nn.Module):
    """A convolution or a product, a norm, neurons, and a readout of the mean activity: scores [batch, 3]."""

    def __init__(self, norm: nn.Module, flat: bool, twice: bool = False) -> None:
        super().__init__()
        self.weights: nn.Module = nn.Linear(5, CHANNELS) if flat else nn.Conv2d(2, CHANNELS, 3, padding=1)
        self.norm, self.neurons, self.twice, self.flat = norm, snn.LIF(leak=0.8), twice, flat
        self.out = nn.Linear(CHANNELS if flat else CHANNELS * 16, 3)

    def forward(self, x: Tensor) -> Tensor:
        """Returns scores of inputs [steps, batch, ...]."""
        state, total = None, torch.zeros(x.shape[1], 3, dtype=x.dtype)
        for x_t in x:
            current = self.norm(self.weights(x_t))
            current = self.norm(0.5 * current) if self.twice else current
            spikes, state = self.neurons(2 * current, state)
            total = total + self.out(spikes.flatten(1))
        return total / x.shape[0]


def moving(norm: nn.Module) -> nn.Module:
    """Returns a norm with scales and offsets that are not those of a new one."""
    for parameter in norm.parameters():
        nn.init.uniform_(parameter, 0.5, 1.5)
    return norm


NORMS: dict[str, tuple[Callable[[], nn.Module], bool]] = {
    "product": (lambda: nn.BatchNorm1d(CHANNELS), True),
    "convolution": (lambda: nn.BatchNorm2d(CHANNELS), False),
    "its own share": (lambda: nn.BatchNorm2d(CHANNELS, momentum=0.37, eps=1e-3), False),
    "cumulative": (lambda: nn.BatchNorm2d(CHANNELS, momentum=None), False),
    "without scales": (lambda: nn.BatchNorm2d(CHANNELS, affine=False), False),
    "without running statistics": (lambda: nn.BatchNorm2d(CHANNELS, track_running_stats=False), False),
}


def inputs(flat: bool, batch: int, dtype: torch.dtype = torch.float64) -> Tensor:
    """Returns spikes [steps, batch, ...] of which every step has another mean."""
    rates = torch.linspace(0.2, 0.8, STEPS, dtype=dtype)
    shape = (5,) if flat else (2, 4, 4)
    return (torch.rand(STEPS, batch, *shape, dtype=dtype) < rates.reshape(-1, 1, *[1] * len(shape))).to(dtype)


def counted(monkeypatch: pytest.MonkeyPatch) -> list[int]:
    """Returns a list that grows with the steps that are taken at once."""
    found: list[int] = []

    class Counted(OverSteps):
        def __init__(self, *args: Any) -> None:
            super().__init__(*args)
            found.append(self.steps)

    monkeypatch.setattr(span, "OverSteps", Counted)
    return found


def trained(net: nn.Module, x: Tensor) -> tuple[Tensor, dict[str, Tensor]]:
    """Returns scores, and gradients by parameter."""
    scores = net(x)
    (scores * torch.tensor([1.0, -2.0, 0.5], dtype=x.dtype)).square().sum().backward()
    return scores.detach(), {name: p.grad for name, p in net.named_parameters() if p.grad is not None}


@pytest.mark.parametrize("bins", [2, STEPS])
@pytest.mark.parametrize("kind", NORMS)
def test_steps_at_once_give_what_single_steps_give(kind: str, bins: int, monkeypatch: pytest.MonkeyPatch) -> None:
    torch.manual_seed(0)
    make, flat = NORMS[kind]
    model = Net(moving(make()), flat).double()
    found = counted(monkeypatch)
    nets = [
        tracecompile.convert(copy.deepcopy(model), inputs(flat, 3), bins=bins, backend="eager", chunk=chunk)
        for chunk in (1, 4)
    ]
    x = inputs(flat, 5)
    found.clear()
    expected, theirs = trained(nets[0], x)
    assert not found
    scores, ours = trained(nets[1], x)
    assert bool(found) == (bins == 2), "a bin of one step is a step"
    torch.testing.assert_close(scores, expected, rtol=1e-10, atol=1e-12)
    torch.testing.assert_close(scores, trained(model, x)[0], rtol=1e-10, atol=1e-12)
    for name, gradient in theirs.items():
        torch.testing.assert_close(ours[name], gradient, rtol=1e-8, atol=1e-11)
    for one, other in zip(nets[1].buffers(), model.buffers(), strict=True):
        torch.testing.assert_close(one, other, rtol=1e-12, atol=1e-14)
    assert float(expected.abs().sum()) > 0


REFUSED: dict[str, tuple[Callable[[Net], Any], torch.dtype]] = {
    "a norm that is called twice": (lambda net: setattr(net, "twice", True), torch.float64),
    "a hook": (lambda net: net.norm.register_forward_hook(lambda module, given, result: 2 * result), torch.float64),
    "half precision": (lambda net: net.bfloat16(), torch.bfloat16),
    "a class of one's own": (lambda net: setattr(net, "norm", Halved(CHANNELS).double()), torch.float64),
}


class Halved(nn.BatchNorm2d):
    """A norm that does something else."""

    def forward(self, input: Tensor) -> Tensor:  # noqa: A002
        """Returns half of what the norm returns."""
        return super().forward(input) / 2


@pytest.mark.parametrize("kind", REFUSED)
def test_what_asks_for_single_steps_gets_them(kind: str, monkeypatch: pytest.MonkeyPatch) -> None:
    torch.manual_seed(0)
    change, dtype = REFUSED[kind]
    model = Net(moving(nn.BatchNorm2d(CHANNELS)), flat=False).double()
    change(model)
    found = counted(monkeypatch)
    net = tracecompile.convert(copy.deepcopy(model), inputs(False, 3, dtype), bins=2, backend="eager", chunk=4)
    x = inputs(False, 5, dtype)
    scores, _ = trained(net, x)
    assert not found
    torch.testing.assert_close(scores, trained(model, x)[0])
    for one, other in zip(net.buffers(), model.buffers(), strict=True):
        torch.testing.assert_close(one, other)


def test_a_single_value_of_a_channel_is_refused_as_torch_does() -> None:
    model = Net(nn.BatchNorm1d(CHANNELS), flat=True)
    net = tracecompile.convert(model, torch.rand(STEPS, 3, 5), bins=2, backend="eager", chunk=4)
    with pytest.raises(ValueError, match="more than 1 value per channel"):
        net(torch.rand(STEPS, 1, 5))


def test_under_autocast_steps_are_taken_one_by_one(monkeypatch: pytest.MonkeyPatch) -> None:
    torch.manual_seed(0)
    model = Net(nn.BatchNorm2d(CHANNELS), flat=False)
    net = tracecompile.convert(model, inputs(False, 3, torch.float32), bins=2, backend="eager", chunk=4)
    found = counted(monkeypatch)
    with torch.autocast("cpu", torch.bfloat16):
        net(inputs(False, 3, torch.float32))
    assert not found
    net(inputs(False, 3, torch.float32))
    assert found
