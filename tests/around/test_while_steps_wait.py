"""A step model that is changed while steps wait for backward: what backward goes by may not be another thing then."""

from __future__ import annotations

import copy
import pickle
from collections.abc import Callable
from typing import Any

import pytest
import torch
from torch import Tensor, nn

import tracecompile
from around.nets import INPUTS, SPIKE, WIDTH, Step, assert_close, events, twins
from around.test_changes import another_forward, new_head, no_bias, scaled
from tracecompile.errors import InvalidInput

STEPS = 8


class Tuned(Step):
    """With a threshold that is a number, a leak that is learned, and a gain that is a buffer."""

    def __init__(self) -> None:
        super().__init__()
        self.threshold, self.leak = 0.5, nn.Parameter(torch.full((WIDTH,), 0.85))
        self.register_buffer("gain", torch.full((WIDTH,), 2.5))

    def forward(self, x: Tensor) -> Tensor:
        if self.v is None or self.z is None:
            self.v = self.z = x.new_zeros(x.shape[0], WIDTH)
        v = self.leak * self.v + self.gain * self.enter(x) + self.lateral(self.z)
        z = SPIKE(v - self.threshold)
        self.v, self.z = v - self.threshold * z, z
        return self.leave(z)


class HandedIn(nn.Module):
    """Its caller holds the state."""

    def __init__(self) -> None:
        super().__init__()
        self.enter, self.leave, self.leak = nn.Linear(INPUTS, WIDTH), nn.Linear(WIDTH, 3), 0.85

    def forward(self, x: Tensor, v: Tensor) -> tuple[Tensor, Tensor]:
        v = self.leak * v + 2.5 * self.enter(x)
        z = SPIKE(v - 0.5)
        return self.leave(z), v - 0.5 * z


class StateFirst(HandedIn):
    """The same, with its state before the input."""

    def forward(self, v: Tensor, x: Tensor) -> tuple[Tensor, Tensor]:
        return super().forward(x, v)


def converted(make: Callable[[], Any], *more: Any) -> tuple[Any, Any, Any]:
    model, twin = twins(make)
    net = tracecompile.convert(model, (events(1, 4)[0], *more), bins=STEPS, backend="eager")
    return net, model, twin


@pytest.mark.parametrize("copied", [copy.deepcopy, lambda net: pickle.loads(pickle.dumps(net))], ids=["copy", "pickle"])
@pytest.mark.parametrize("order", [HandedIn, StateFirst])
def test_a_copy_of_a_net_that_is_handed_its_states(order: Callable[[], Any], copied: Callable[[Any], Any]) -> None:
    given = [events(1, 4)[0], torch.zeros(4, WIDTH)][:: 1 if order is HandedIn else -1]
    model, twin = twins(order)
    net = tracecompile.convert(model, tuple(given), bins=STEPS, backend="eager")
    model.leak = twin.leak = 0.5
    assert all(map(torch.equal, copied(net)(*given), twin(*given)))


def unfrozen(model: Any) -> None:
    model.leave.weight.requires_grad_(not model.leave.weight.requires_grad)


GONE_BY: dict[str, Callable[[Any], Any]] = {
    "a head": new_head,
    "a hook": scaled,
    "a forward": another_forward,
    "no bias": no_bias,
    "a Parameter": lambda model: setattr(model.leave, "weight", nn.Parameter(model.leave.weight.detach().clone())),
    "a Parameter of neurons": lambda model: setattr(model, "leak", nn.Parameter(torch.full((WIDTH,), 0.5))),
    "a Parameter of neurons in place": lambda model: model.leak.detach().mul_(0.5),
    "a buffer": lambda model: setattr(model, "gain", torch.full((WIDTH,), 1.5)),
    "a buffer in place": lambda model: model.gain.mul_(0.5),
    "what learns": unfrozen,
}


@pytest.mark.parametrize("change", [pytest.param(change, id=name) for name, change in GONE_BY.items()])
def test_what_backward_goes_by_is_refused_until_backward(change: Callable[[Any], Any]) -> None:
    net, model, twin = converted(Tuned)
    if change is unfrozen:
        for module in (model, twin):
            unfrozen(module)
    x = events(STEPS, 4)
    for x_t in x[:3]:
        net(x_t)
    change(model)
    for _ in range(2):
        with pytest.raises(InvalidInput, match="changed while steps wait for backward"):
            net(x[3])
    with torch.no_grad():
        net(x[3])  # what is not trained may change at any time
    net.reset()
    change(twin)
    assert all(torch.equal(net(x_t), twin(x_t)) for x_t in x)


@pytest.mark.parametrize("change", [new_head, scaled])
def test_after_backward_the_sequence_goes_on(change: Callable[[Any], Any]) -> None:
    net, model, twin = converted(Tuned)
    x = events(STEPS, 4)
    for module in (net, twin):
        torch.stack([module(x_t) for x_t in x[:3]]).square().sum().backward()
    twin.v, twin.z = twin.v.detach(), twin.z.detach()
    for module in (model, twin):
        module.zero_grad()
        change(module)
    found, wanted = ([module(x_t) for x_t in x[3:]] for module in (net, twin))
    assert all(map(torch.equal, found, wanted))
    for outputs in (found, wanted):
        torch.stack(outputs).square().sum().backward()
    assert_close(*({name: p.grad for name, p in module.named_parameters()} for module in (model, twin)))


@pytest.mark.parametrize("threshold", [0.3, 0.7])
def test_neurons_may_become_others(threshold: float) -> None:
    net, model, twin = converted(Tuned)
    x = events(STEPS, 4)
    outputs: list[list[Tensor]] = []
    for called, module in ((net, model), (twin, twin)):
        found = [called(x_t) for x_t in x[:3]]
        module.threshold = threshold
        outputs.append([*found, *(called(x_t) for x_t in x[3:])])
        torch.stack(outputs[-1]).square().sum().backward()
    assert all(map(torch.equal, *outputs))
    assert_close(*({name: p.grad for name, p in module.named_parameters()} for module in (model, twin)))


def test_what_is_put_back_goes_on() -> None:
    net, model, twin = converted(Tuned)
    x, head = events(STEPS, 4), model.leave
    found, wanted = ([module(x_t) for x_t in x[:3]] for module in (net, twin))
    new_head(model)
    with pytest.raises(InvalidInput, match="leave"):
        net(x[3])
    model.leave = head
    found += [net(x_t) for x_t in x[3:]]
    wanted += [twin(x_t) for x_t in x[3:]]
    for outputs in (found, wanted):
        torch.stack(outputs).square().sum().backward()
    assert_close(*({name: p.grad for name, p in module.named_parameters()} for module in (model, twin)))


@pytest.mark.parametrize("change", [new_head, scaled, lambda model: setattr(model, "leak", 0.5), no_bias])
def test_states_that_are_handed_in_lead_from_one_model_to_the_other(change: Callable[[Any], Any]) -> None:
    net, model, twin = converted(HandedIn, torch.zeros(4, WIDTH))
    x = events(STEPS, 4)
    gradients = []
    for called, module in ((net, model), (twin, twin)):
        parameters, outputs, v = list(module.parameters()), [], torch.zeros(4, WIDTH)
        for t, x_t in enumerate(x):
            if t == 3:
                change(module)
            output, v = called(x_t, v)
            outputs.append(output)
        torch.stack(outputs).square().sum().backward()
        parameters += [p for p in module.parameters() if not any(p is other for other in parameters)]
        gradients.append({str(place): p.grad for place, p in enumerate(parameters) if p.grad is not None})
    assert_close(*gradients)


@pytest.mark.parametrize("change", [new_head, scaled, lambda model: setattr(model, "threshold", 0.3)])
def test_steps_that_are_run_again_may_not_become_others(change: Callable[[Any], Any]) -> None:
    model, twin = twins(Tuned)
    net, x = tracecompile.convert(model, events(1, 4)[0], rule="exact", backend="eager"), events(STEPS, 4)
    for x_t in x[:3]:
        net(x_t)
    change(model)
    with pytest.raises(InvalidInput, match="changed while steps wait for backward"):
        net(x[3])
    net.reset()
    change(twin)
    assert all(torch.equal(net(x_t), twin(x_t)) for x_t in x)
