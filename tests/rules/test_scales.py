"""Scales of currents: what a mean forgets of signal times current is kept, whatever multiplies."""

from __future__ import annotations

from collections.abc import Callable

import pytest
import torch
from support.oracle import HIDDEN, INPUTS, OUTPUTS, spike
from torch import Tensor, nn
from torch.nn import functional as F

import tracecompile
from tracecompile.diagnostics.memory import live_state_bytes

STEPS, BATCH = 11, 5


class Net(nn.Module):
    """A layer whose currents are scaled, leaky neurons, a linear readout: its mean, or that of the last step."""

    def __init__(self, current: nn.Module, last: bool = False) -> None:
        super().__init__()
        self.inp, self.current, self.out = nn.Linear(INPUTS, HIDDEN), current, nn.Linear(HIDDEN, OUTPUTS)
        self.last = last

    def forward(self, x: Tensor) -> Tensor:
        v, total = x.new_zeros(x.shape[1], HIDDEN), x.new_zeros(x.shape[1], OUTPUTS)
        for x_t in x:
            v = 0.8 * v + self.current(self.inp(x_t))
            z = spike(v - 0.4)
            v = v * (1 - z)
            total = self.out(z) if self.last else total + self.out(z)
        return total if self.last else total / x.shape[0]


class Gained(nn.Module):
    """A gain and a shift of every neuron."""

    def __init__(self) -> None:
        super().__init__()
        self.gain, self.shift = nn.Parameter(torch.rand(HIDDEN) + 0.5), nn.Parameter(torch.rand(HIDDEN) - 0.3)

    def forward(self, x: Tensor) -> Tensor:
        return self.gain * x + self.shift


class OfAll(Gained):
    """One gain of all neurons, computed from a parameter, and a fixed factor."""

    def __init__(self) -> None:
        super().__init__()
        self.gain = nn.Parameter(torch.tensor(0.4))

    def forward(self, x: Tensor) -> Tensor:
        return (x * F.softplus(self.gain) - self.shift) * 0.9


class Divided(Gained):
    def forward(self, x: Tensor) -> Tensor:
        return self.shift + x / self.gain


class WrittenOut(Gained):
    """By the statistics of the batch, which change from step to step; the gain before them."""

    def forward(self, x: Tensor) -> Tensor:
        return self.gain * (x - x.mean(0)) / (x.var(0) + 1e-5).sqrt() + self.shift


class ByFunction(Gained):
    def forward(self, x: Tensor) -> Tensor:
        return F.batch_norm(x, None, None, self.gain, self.shift, training=True)


class OverFeatures(Gained):
    def forward(self, x: Tensor) -> Tensor:
        return 1.2 * F.layer_norm(x, (HIDDEN,), weight=self.gain, bias=self.shift)


class OwnBatchNorm(nn.BatchNorm1d):
    def forward(self, x: Tensor) -> Tensor:
        return 0.8 * super().forward(x)


SCALES: dict[str, Callable[[], nn.Module]] = {
    "gain": Gained,
    "of all": OfAll,
    "divided": Divided,
    "written out": WrittenOut,
    "by function": ByFunction,
    "over features": OverFeatures,
    "batch norm": lambda: nn.BatchNorm1d(HIDDEN),
    "batch norm of one's own": lambda: OwnBatchNorm(HIDDEN),
    "batch norm, eval": lambda: nn.BatchNorm1d(HIDDEN).eval(),
    "layer norm": lambda: nn.LayerNorm(HIDDEN),
    "groups": lambda: nn.GroupNorm(2, HIDDEN),
    "root mean square": lambda: nn.RMSNorm(HIDDEN),
}


def built(name: str, last: bool = False) -> tuple[Net, Tensor, Tensor]:
    torch.manual_seed(1)
    model = Net(SCALES[name](), last).double()
    with torch.no_grad():
        for norm in model.current.parameters():
            norm.add_(0.2 * torch.rand_like(norm))
    return model, torch.randn(STEPS, BATCH, INPUTS, dtype=torch.float64), torch.randn(BATCH, OUTPUTS).double()


def gradients(model: Net, call: Callable[[Tensor], Tensor], x: Tensor, weigh: Tensor) -> dict[str, Tensor]:
    names, parameters = zip(*model.named_parameters(), strict=True)
    return dict(zip(names, torch.autograd.grad((call(x) * weigh).sum(), parameters), strict=True))


def is_scale(name: str) -> bool:
    return name.startswith("current") and name.endswith(("weight", "gain"))


@pytest.mark.parametrize("last", [False, True])
@pytest.mark.parametrize("name", SCALES)
def test_below_a_linear_readout_scales_are_exact(name: str, last: bool) -> None:
    """As a signal that is the same at every step makes them, or one that falls on the last step alone."""
    model, x, weigh = built(name, last)
    exact = gradients(model, model, x, weigh)
    for bins in (1, 3, STEPS):
        net = tracecompile.convert(model, x[:4, :2], bins=bins, backend="eager")
        found = gradients(model, net, x, weigh)
        for parameter in filter(is_scale, exact):
            assert exact[parameter].norm() > 1e-3
            torch.testing.assert_close(found[parameter], exact[parameter], rtol=1e-9, atol=1e-9)
        if bins == STEPS:
            torch.testing.assert_close(found, exact, rtol=1e-9, atol=1e-9)


def test_nothing_is_carried_where_nothing_scales() -> None:
    """Neither for a sum that has an offset which changes, nor for a parameter before what mixes neurons."""

    class Shifted(Gained):
        def forward(self, x: Tensor) -> Tensor:
            return (self.shift + (self.gain * x).cumsum(1)).relu()

    torch.manual_seed(0)
    x = torch.randn(4, 2, INPUTS)
    for current in (Shifted(), nn.BatchNorm1d(HIDDEN, affine=False)):
        assert not any(layer.scales for layer in tracecompile.convert(Net(current), x).program.layers)


def test_the_other_gradients_are_the_same_beside_a_frozen_scale() -> None:
    model, x, weigh = built("gain")
    net = tracecompile.convert(model, x, bins=3, backend="eager")
    trained = gradients(model, net, x, weigh)
    model.current.requires_grad_(False)
    model.zero_grad()
    (net(x) * weigh).sum().backward()
    assert all(parameter.grad is None for parameter in model.current.parameters())
    assert model.inp.weight.grad is not None
    assert torch.equal(model.inp.weight.grad, trained["inp.weight"])


def test_a_scale_of_zero_keeps_what_the_means_say() -> None:
    model, x, weigh = built("batch norm")
    with torch.no_grad():
        model.current.weight[0] = 0.0
    net = tracecompile.convert(model, x, bins=3, backend="eager")
    exact, found = (gradients(model, call, x, weigh)["current.weight"] for call in (model, net))
    assert found.isfinite().all()
    torch.testing.assert_close(found[1:], exact[1:])
    assert found[0] != 0


def test_compiled_and_in_chunks() -> None:
    model, x, weigh = built("batch norm")
    eager, chunked, compiled = (
        tracecompile.convert(model, x, bins=3, backend=backend, chunk=chunk)
        for backend, chunk in (("eager", 1), ("eager", 4), ("inductor", 4))
    )
    exact = gradients(model, eager, x, weigh)
    for net in (chunked, compiled):
        torch.testing.assert_close(gradients(model, net, x, weigh), exact, rtol=1e-9, atol=1e-9)


@pytest.mark.parametrize("bins", [1, 4])
def test_the_report_states_what_is_carried_for_them(bins: int) -> None:
    net = tracecompile.convert(built("batch norm")[0], torch.randn(5, 7, INPUTS).double(), bins=bins, backend="eager")
    memory = net.report.memory
    held = []
    for steps in (40, 80):
        outputs = net(torch.randn(steps, 7, INPUTS).double())
        held.append(live_state_bytes(net))
        outputs.sum().backward()
    stated = 7 * (memory.total - memory.states) + memory.profiles
    assert held[0] == held[1]
    assert 0.85 * stated < held[0] < 1.1 * stated, (held[0], str(memory))
