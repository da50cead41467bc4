"""A model that is changed between two calls of its net: what is changed is seen at the next call."""

from __future__ import annotations

import copy
from collections.abc import Callable
from typing import Any

import pytest
import torch
from torch import Tensor, nn
from torch.nn.utils import parametrize

import tracecompile
from around.nets import INPUTS, OUTPUTS, SPIKE, WIDTH, Sequence, assert_trains_alike, events, twins

STEPS = 7


class Settings:
    """An object of the user's own that forward reads."""

    def __init__(self) -> None:
        self.leak = 0.9


class Odd(Sequence):
    """What decides what forward does is kept in as many ways as there are."""

    scale = 2.0

    def __init__(self) -> None:
        super().__init__()
        self.listed, self.named, self.settings = [0.5], {"leak": 0.9}, Settings()
        bias = 0.0

        def shifted(value: Tensor) -> Tensor:
            return value + bias

        def shift_by(amount: float) -> None:
            nonlocal bias
            bias = amount

        self.shifted, self.shift_by = shifted, shift_by

    def forward(self, x: Tensor) -> Tensor:
        v, total = x.new_zeros(x.shape[1], WIDTH), x.new_zeros(x.shape[1], OUTPUTS)
        for x_t in x:
            v = self.named["leak"] * self.settings.leak * v + self.scale * self.shifted(self.enter(x_t))
            z = SPIKE(v - self.listed[0])
            v = v - z
            total = total + self.leave(z)
        return total


class Halved(nn.Module):
    """A parametrisation."""

    def forward(self, weight: Tensor) -> Tensor:
        return 0.5 * weight


def new_head(model: Any) -> None:
    torch.manual_seed(4)
    model.leave = nn.Linear(WIDTH, OUTPUTS)


def no_bias(model: Any) -> None:
    model.enter.bias = None


def tied(model: Any) -> None:
    model.other = nn.Linear(INPUTS, WIDTH)
    model.enter.weight = model.other.weight
    with torch.no_grad():
        model.enter.weight.fill_(0.4)


def scaled(model: Any) -> None:
    model.leave.register_forward_hook(lambda module, args, result: 2 * result)


def another_forward(model: Any) -> None:
    model.leave.forward = lambda z: 3 * nn.functional.linear(z, model.leave.weight, model.leave.bias)


def spectral(model: Any) -> None:
    torch.manual_seed(2)  # it begins with a random vector
    nn.utils.parametrizations.spectral_norm(model.eval().leave)


def moved_data(model: Any) -> None:
    model.enter.weight.data = 0.7 * model.enter.weight.data


CHANGES: dict[str, Callable[[Any], Any]] = {
    "a leak": lambda model: setattr(model, "leak", 0.7),
    "a threshold": lambda model: setattr(model, "threshold", 0.3),
    "a buffer": lambda model: setattr(model, "gain", torch.full((WIDTH,), 3.0)),
    "a buffer in place": lambda model: model.gain.fill_(1.5),
    "a head": new_head,
    "no bias": no_bias,
    "a tie": tied,
    "a hook": scaled,
    "a forward": another_forward,
    "data": moved_data,
    "a new Parameter": lambda model: setattr(model.enter, "weight", nn.Parameter(0.5 * model.enter.weight.detach())),
    "a parametrisation": lambda model: parametrize.register_parametrization(model.leave, "weight", Halved()),
    "spectral norm": spectral,
}
ODD_CHANGES: dict[str, Callable[[Any], Any]] = {
    "a list": lambda model: model.listed.__setitem__(0, 0.3),
    "a dictionary": lambda model: model.named.update(leak=0.6),
    "an object": lambda model: setattr(model.settings, "leak", 0.5),
    "a closure": lambda model: model.shift_by(0.2),
    "an attribute that hides that of the class": lambda model: setattr(model, "scale", 1.5),
}


@pytest.mark.parametrize(
    ("make", "change"),
    [
        *(pytest.param(Sequence, change, id=name) for name, change in CHANGES.items()),
        *(pytest.param(Odd, change, id=name) for name, change in ODD_CHANGES.items()),
    ],
)
def test_what_is_changed_is_seen(make: Callable[[], nn.Module], change: Callable[[Any], Any]) -> None:
    model, twin = twins(make)
    net = tracecompile.convert(model, events(5, 2), bins=STEPS, backend="eager")
    x = events(STEPS, 4)
    before = net(x)
    change(model)
    change(twin)
    assert not torch.equal(twin(x), before), "the change changes nothing"
    assert_trains_alike(net, model, twin, x)


def test_an_attribute_of_the_class_is_seen() -> None:
    class Own(Odd):
        scale = 2.0

    model, twin = twins(Own)
    net, x = tracecompile.convert(model, events(5, 2), bins=STEPS, backend="eager"), events(STEPS, 4)
    net(x)
    Own.scale = 1.2
    assert_trains_alike(net, model, twin, x)


def test_what_was_there_before_costs_no_new_capture() -> None:
    model, _ = twins(Sequence)
    net, x = tracecompile.convert(model, events(5, 2), backend="eager"), events(STEPS, 4)
    first, seen = net.program, set()
    for leak in (0.9, 0.8, 0.9, 0.8):
        model.leak = leak
        net(x)
        seen.add(id(net.program))
        assert (net.program is first) == (leak == 0.9)
    assert len(seen) == 2


def test_the_report_says_why_it_was_captured_again() -> None:
    model, _ = twins(Sequence)
    net, x = tracecompile.convert(model, events(5, 2), backend="eager"), events(STEPS, 4)
    model.leak = 0.8
    net(x)
    assert any("Captured again" in note and "leak" in note for note in net.report.notes)


def test_what_forward_does_not_read_costs_no_capture() -> None:
    model, _ = twins(Sequence)
    net, x = tracecompile.convert(model, events(5, 2), backend="eager"), events(STEPS, 4)
    first = net.program
    model.epoch, model.history = 3, {"loss": 0.1}
    model.enter.weight = nn.Parameter(0.5 * model.enter.weight.detach())
    model.enter.weight.requires_grad_(False)
    net(x)
    assert net.program is first


def test_a_change_in_the_middle_of_a_sequence_goes_on_from_its_states() -> None:
    class Leaky(nn.Module):
        def __init__(self) -> None:
            super().__init__()
            self.enter, self.leak = nn.Linear(INPUTS, WIDTH), 0.9
            self.v: Tensor | None = None

        def forward(self, x: Tensor) -> Tensor:
            v = 2.5 * self.enter(x) if self.v is None else self.leak * self.v + 2.5 * self.enter(x)
            z = SPIKE(v - 0.5)
            self.v = v - 0.5 * z
            return z

    model, twin = twins(Leaky)
    net = tracecompile.convert(model, events(1, 4)[0], bins=8, backend="eager")
    total, wanted = torch.zeros(()), torch.zeros(())
    for t, x_t in enumerate(events(8, 4)):
        if t == 4:
            model.leak = twin.leak = 0.5
        got, right = net(x_t), twin(x_t)
        assert torch.equal(got, right)
        total, wanted = total + got.sum(), wanted + right.sum()


@pytest.mark.parametrize("between", ["reset", "snapshot", "copy"])
def test_what_is_done_to_the_net_meanwhile_hides_no_change(between: str) -> None:
    model, twin = twins(Sequence)
    net, x = tracecompile.convert(model, events(5, 2), bins=STEPS, backend="eager"), events(STEPS, 4)
    net(x)
    new_head(model)
    new_head(twin)
    model.leak = twin.leak = 0.7
    if between == "reset":
        net.reset()
    elif between == "snapshot":
        net.restore(net.snapshot())
    else:
        assert torch.equal(copy.deepcopy(net)(x), twin(x))
    assert_trains_alike(net, model, twin, x)
