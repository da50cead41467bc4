"""Derivatives by autograd that are written down: the same numbers, and never a stale one."""

from __future__ import annotations

import copy
from typing import Any

import pytest
import torch
from models import FastSigmoid
from test_compiled_scans import Stubborn, gradients
from torch import Tensor, nn

import tracecompile
from tracecompile.rules import written
from tracecompile.rules.slopes import WithSlopes
from tracecompile.rules.written import in_sequence
from tracecompile.runtime.engine import compiled

STEPS = written.ENOUGH + 10


class Annealed(FastSigmoid):
    """A surrogate whose slope is changed while training goes on."""

    slope = 1.0

    @staticmethod
    def backward(ctx: Any, grad: Tensor) -> Tensor:
        (v,) = ctx.saved_tensors
        return grad / (1 + Annealed.slope * v.abs())


class Noisy(FastSigmoid):
    """A surrogate that draws random numbers."""

    @staticmethod
    def forward(ctx: Any, v: Tensor) -> Tensor:
        return FastSigmoid.forward(ctx, v + 0.1 * torch.rand_like(v))


def calls(slopes: WithSlopes, steps: int, seed: int) -> list[tuple[Tensor, ...]]:
    torch.manual_seed(seed)
    with torch.no_grad(), in_sequence([slopes]):
        return [slopes(torch.randn(3, 4)) for _ in range(steps)]


def counted(monkeypatch: pytest.MonkeyPatch) -> list[int]:
    """Returns a list that gets an entry with every call of autograd."""
    made: list[int] = []
    plain = WithSlopes.by_autograd

    def by_autograd(self: WithSlopes, *args: Any, **kwargs: Any) -> Any:
        made.append(1)
        return plain(self, *args, **kwargs)

    monkeypatch.setattr(WithSlopes, "by_autograd", by_autograd)
    return made


def test_written_down_after_some_calls_and_the_same_bit_for_bit(monkeypatch: pytest.MonkeyPatch) -> None:
    expected = [WithSlopes(Annealed.apply, "call_function", (0,))(*v) for v in inputs_of(STEPS)]
    made = counted(monkeypatch)
    found = calls(WithSlopes(Annealed.apply, "call_function", (0,)), STEPS, 0)
    assert len(made) == written.ENOUGH + 2, "those before, the one that is made both ways, and the one that is traced"
    for ours, theirs in zip(found, expected, strict=True):
        assert all(torch.equal(one, other) for one, other in zip(ours, theirs, strict=True))
        assert set(ours[0].unique().tolist()) == {0.0, 1.0}


def inputs_of(steps: int) -> list[tuple[Tensor]]:
    torch.manual_seed(0)
    return [(torch.randn(3, 4),) for _ in range(steps)]


def test_a_slope_that_was_changed_between_sequences_is_seen(monkeypatch: pytest.MonkeyPatch) -> None:
    slopes = WithSlopes(Annealed.apply, "call_function", (0,))
    calls(slopes, STEPS, 0)
    monkeypatch.setattr(Annealed, "slope", 7.0)
    for copied in (slopes, copy.deepcopy(slopes)):
        for (_, slope), (v,) in zip(calls(copied, STEPS, 0), inputs_of(STEPS), strict=True):
            torch.testing.assert_close(slope, 1 / (1 + 7 * v.abs()))


@pytest.mark.parametrize("surrogate", [Noisy.apply, Stubborn.apply], ids=["random", "looks at values"])
def test_what_cannot_be_written_down_is_called(surrogate: Any, monkeypatch: pytest.MonkeyPatch) -> None:
    torch.manual_seed(0)
    with torch.no_grad():
        slopes = WithSlopes(surrogate, "call_function", (0,))
        expected = [slopes(torch.randn(3, 4)) for _ in range(STEPS)]
    made = counted(monkeypatch)
    found = calls(WithSlopes(surrogate, "call_function", (0,)), STEPS, 0)
    assert len(made) >= STEPS
    for ours, theirs in zip(found, expected, strict=True):
        assert all(torch.equal(one, other) for one, other in zip(ours, theirs, strict=True))


class AnnealedNet(nn.Module):
    """One layer with such a surrogate."""

    def __init__(self, surrogate: type[torch.autograd.Function]) -> None:
        super().__init__()
        self.fc, self.surrogate = nn.Linear(4, 6), surrogate

    def forward(self, x: Tensor) -> Tensor:
        v, spikes = torch.zeros(()), []
        for x_t in x:
            v = 0.8 * v + self.fc(x_t)
            spike = self.surrogate.apply(v - 0.3)
            v = v - spike.detach()
            spikes.append(spike)
        return torch.stack(spikes)


@pytest.mark.parametrize(
    "settings", [{"backend": "eager"}, {"backend": "eager", "chunk": 30}, {"backend": "inductor"}], ids=str
)
def test_a_network_sees_a_slope_that_was_changed(settings: Any, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(compiled, "PIECE", 3)
    torch.manual_seed(0)
    model, x = AnnealedNet(Annealed).double(), torch.rand(40, 3, 4).double()
    net = tracecompile.convert(model, x, **settings)
    before = gradients(net, net(x))
    for name, gradient in gradients(net, net(x)).items():
        assert torch.equal(gradient, before[name])
    monkeypatch.setattr(Annealed, "slope", 5.0)
    after = gradients(net, net(x))
    fresh = tracecompile.convert(model, x, backend="eager", chunk=1)
    for name, gradient in gradients(fresh, fresh(x)).items():
        torch.testing.assert_close(after[name], gradient)
        assert (gradient - before[name]).norm() > 0.1 * gradient.norm()


def test_a_surrogate_that_draws_is_refused_by_the_rule_that_measures_its_slope() -> None:
    model, x = AnnealedNet(Noisy).double(), torch.rand(40, 3, 4).double()
    with pytest.raises(tracecompile.ConversionError, match=r"draws random numbers .*\n.*test_written.py"):
        tracecompile.convert(model, x)


@pytest.mark.parametrize("rule", ["exact", "bptt"])
def test_a_surrogate_that_draws_is_drawn_again(rule: Any) -> None:
    torch.manual_seed(0)
    model, x = AnnealedNet(Noisy).double(), torch.rand(40, 3, 4).double()
    net = tracecompile.convert(model, x, rule=rule)
    found = []
    for module in (net, model):
        torch.manual_seed(1)
        outputs = module(x)
        found.append((outputs, gradients(model, outputs)))
    assert torch.equal(found[0][0], found[1][0])
    for name, gradient in found[1][1].items():
        torch.testing.assert_close(found[0][1][name], gradient, rtol=1e-9, atol=1e-12)
