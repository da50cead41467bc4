"""A model that is changed between forward and backward: the gradient is that of what has run."""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

import pytest
import torch
from torch import Tensor, nn
from torch.nn.utils import prune

import tracecompile
from around.nets import INPUTS, WIDTH, Sequence, Step, assert_close, events, twins
from around.test_changes import another_forward, new_head, no_bias, scaled

STEPS = 7


class Normalised(Sequence):
    """With a normalisation, a hook that reads a setting, and a container, which a change may meet."""

    def __init__(self) -> None:
        super().__init__()
        self.enter = nn.Sequential(nn.Linear(INPUTS, WIDTH, bias=False), nn.BatchNorm1d(WIDTH))
        self.factor = 1.2
        self.leave.register_forward_hook(lambda module, args, result: self.factor * result)


def new_container(model: Any) -> None:
    torch.manual_seed(3)
    model.enter = nn.Sequential(nn.Linear(INPUTS, WIDTH, bias=False), nn.BatchNorm1d(WIDTH))


def another_part(model: Any) -> None:
    torch.manual_seed(3)
    model.enter[0] = nn.Linear(INPUTS, WIDTH)


CHANGES: dict[str, Callable[[Any], Any]] = {
    "a head": new_head,
    "no bias": lambda model: no_bias(model) if isinstance(model.enter, nn.Linear) else None,
    "a hook": scaled,
    "no hooks": lambda model: model.leave._forward_hooks.clear(),
    "a forward": another_forward,
    "a Parameter": lambda model: setattr(model.leave, "weight", nn.Parameter(2 * model.leave.weight.detach())),
    "pruning": lambda model: prune.l1_unstructured(model.leave, "weight", 0.5),
    "a mode": lambda model: model.train(not model.training),
    "a leak": lambda model: setattr(model, "leak", 0.3),
    "a buffer": lambda model: setattr(model, "gain", torch.full((WIDTH,), 5.0)),
}
MORE: dict[str, Callable[[Any], Any]] = {
    "a container": new_container,
    "a part of a container": another_part,
    "what a hook reads": lambda model: setattr(model, "factor", 3.0),
}


RULES: dict[str, dict[str, Any]] = {"measured": {"bins": STEPS}, "exact": {"rule": "exact"}}


def all_gradients(parameters: list[nn.Parameter]) -> dict[str, Tensor]:
    return {str(place): p.grad.clone() for place, p in enumerate(parameters) if p.grad is not None}


@pytest.mark.parametrize(
    ("make", "change", "training"),
    [
        *(pytest.param(Sequence, change, True, id=name) for name, change in CHANGES.items()),
        *(
            pytest.param(Normalised, change, training, id=f"{name}, normalised, {training}")
            for name, change in (CHANGES | MORE).items()
            for training in (True, False)
        ),
    ],
)
def test_a_sequence(make: Callable[[], nn.Module], change: Callable[[Any], Any], training: bool) -> None:
    model, twin = twins(make)
    net = tracecompile.convert(model.train(training), events(5, 2), bins=STEPS, backend="eager")
    x = events(STEPS, 4)
    twin.train(training)
    net(x)
    twin(x)
    losses = [module(x).square().mean() for module in (net, twin)]
    parameters = [list(module.parameters()) for module in (model, twin)]
    for module in (model, twin):
        change(module)
    kept = [{name: id(value) for name, value in module.named_parameters()} for module in (model, twin)]
    statistics = [value.clone() for value in model.buffers()]
    for loss in losses:
        loss.backward()
    assert_close(*map(all_gradients, parameters))
    assert kept == [{name: id(value) for name, value in module.named_parameters()} for module in (model, twin)]
    assert all(map(torch.equal, statistics, model.buffers())), "backward has moved a buffer"
    # and goes on as it was changed
    assert torch.equal(net(x), twin(x))


@pytest.mark.parametrize("change", [new_head, another_part, CHANGES["no hooks"], CHANGES["a mode"], CHANGES["a leak"]])
def test_a_sequence_that_is_run_again(change: Callable[[Any], Any]) -> None:
    model, twin = twins(Normalised)
    net, x = tracecompile.convert(model.eval(), events(5, 2), rule="exact", backend="eager"), events(STEPS, 4)
    twin.eval()
    losses = [module(x).square().mean() for module in (net, twin)]
    parameters = [list(module.parameters()) for module in (model, twin)]
    for module, loss in zip((model, twin), losses, strict=True):
        change(module)
        loss.backward()
    assert_close(*map(all_gradients, parameters))
    assert torch.equal(net(x), twin(x))


@pytest.mark.parametrize("rule", ["measured", "exact"])
@pytest.mark.parametrize("change", [new_head, scaled, another_forward])
@pytest.mark.parametrize("between", ["reset", "cleared", "without gradients"])
def test_steps(change: Callable[[Any], Any], between: str, rule: Any) -> None:
    model, twin = twins(Step)
    net, x = tracecompile.convert(model, events(1, 4)[0], **RULES[rule], backend="eager"), events(STEPS, 4)
    parameters = [list(module.parameters()) for module in (model, twin)]
    losses = []
    for called, module in ((net, model), (twin, twin)):
        outputs = [called(x_t) for x_t in x[:4]]
        change(module)
        if between == "without gradients":
            with torch.no_grad():
                called(x[4])
        if between == "reset" and called is net:
            net.reset()
        elif between != "without gradients":
            module.clear()
        if between != "without gradients":
            outputs += [called(x_t) for x_t in x[4:]]
        losses.append(torch.stack(outputs).square().sum())
        losses[-1].backward()
    assert torch.equal(*losses)
    assert_close(*map(all_gradients, parameters))
