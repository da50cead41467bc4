"""The public methods of ``torch.nn.Module``, one by one: what the model would do."""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

import pytest
import torch
from torch import Tensor, nn

import tracecompile
from around.nets import INPUTS, OUTPUTS, WIDTH, Sequence, assert_trains_alike, events, twins

STEPS = 7


class Whole(Sequence):
    """A model with a part in a container, an attribute that is moved by hand, and a way of its own to be trained."""

    def __init__(self) -> None:
        super().__init__()
        self.more = nn.ModuleDict({"leave": self.leave})
        self.frozen = False

    def train(self, mode: bool = True) -> Whole:
        self.frozen = not mode
        return super().train(mode)

    def forward(self, x: Tensor) -> Tensor:
        return super().forward(x.to(self.enter.weight.dtype))


def made() -> tuple[Any, Any, Any]:
    model, twin = twins(Whole)
    return tracecompile.convert(model, events(5, 2), bins=STEPS, backend="eager"), model, twin


def test_listings_are_the_models() -> None:
    net, model, _ = made()
    for name in ("parameters", "buffers", "children"):
        assert [id(each) for each in getattr(net, name)()] == [id(each) for each in getattr(model, name)()]
    for name in ("named_parameters", "named_buffers", "named_children"):
        found, wanted = list(getattr(net, name)()), list(getattr(model, name)())
        assert [(key, id(each)) for key, each in found] == [(key, id(each)) for key, each in wanted]
    assert [id(each) for each in net.modules()][1:] == [id(each) for each in model.modules()][1:]
    assert next(net.modules()) is net
    assert [name for name, _ in net.named_modules()] == [name for name, _ in model.named_modules()]


def test_what_is_got_by_name_is_the_models() -> None:
    net, model, _ = made()
    assert net.get_parameter("enter.weight") is model.enter.weight
    assert net.get_buffer("gain") is model.gain
    assert net.get_submodule("more.leave") is model.leave
    assert net.enter is model.enter
    assert net.leak == model.leak


CHANGES: dict[str, Callable[[Any], Any]] = {
    "to": lambda module: module.to(torch.float64),
    "double": lambda module: module.double(),
    "float": lambda module: module.double().float(),
    "type": lambda module: module.type(torch.float64),
    "cpu": lambda module: module.cpu(),
    "apply": lambda module: module.apply(lambda each: [p.data.mul_(0.5) for p in each.parameters(recurse=False)]),
    "zero_grad": lambda module: module.zero_grad(),
    "train": lambda module: module.train(),
    "eval": lambda module: module.eval(),
    "register_buffer": lambda module: module.register_buffer("gain", torch.full((WIDTH,), 1.5)),
    "register_parameter": lambda module: module.register_parameter("extra", nn.Parameter(torch.ones(2))),
    "add_module": lambda module: module.add_module("leave", seeded(lambda: nn.Linear(WIDTH, OUTPUTS))),
    "register_module": lambda module: module.register_module("enter", seeded(lambda: nn.Linear(INPUTS, WIDTH))),
    "set_submodule": lambda module: module.set_submodule("leave", seeded(lambda: nn.Linear(WIDTH, OUTPUTS))),
    "load_state_dict": lambda module: module.load_state_dict({k: 0.5 * v for k, v in module.state_dict().items()}),
    "an attribute": lambda module: setattr(module, "leak", 0.6),
    "a submodule": lambda module: setattr(module, "leave", seeded(lambda: nn.Linear(WIDTH, OUTPUTS))),
    "a Parameter": lambda module: setattr(module.enter, "weight", nn.Parameter(torch.full((WIDTH, INPUTS), 0.3))),
    "share_memory": lambda module: module.share_memory(),
    "to_empty": lambda module: [module.to_empty(device="cpu"), *map(filled, (*module.parameters(), *module.buffers()))],
}


def filled(value: Tensor) -> Tensor:
    return value.data.fill_(0.4)


def seeded(make: Callable[[], nn.Module]) -> nn.Module:
    torch.manual_seed(6)
    return make()


@pytest.mark.parametrize("change", [pytest.param(change, id=name) for name, change in CHANGES.items()])
def test_what_is_done_to_the_net_is_done_to_the_model(change: Callable[[Any], Any]) -> None:
    net, model, twin = made()
    change(net)
    change(twin)
    assert model.training == net.training == twin.training
    assert model.frozen == twin.frozen
    assert list(net.state_dict()) == list(twin.state_dict())
    for parameter in (*model.parameters(), *twin.parameters()):
        parameter.requires_grad_(parameter.shape != (2,))
    x = events(STEPS, 4)
    assert torch.equal(net(x), twin(x))
    assert torch.equal(model(x), twin(x))
    assert_trains_alike(net, model, twin, x)


def test_gradients_are_asked_for_as_of_the_model() -> None:
    net, model, twin = made()
    for module in (net, twin):
        module.requires_grad_(False)
        module.leave.requires_grad_()
        module(events(STEPS, 4)).sum().backward()
    assert {name for name, p in model.named_parameters() if p.grad is not None} == {"leave.weight", "leave.bias"}


@pytest.mark.parametrize("assign", [False, True])
def test_a_state_dict_goes_back_and_forth(assign: bool) -> None:
    net, model, twin = made()
    torch.manual_seed(9)
    other = Whole()
    net.load_state_dict(other.state_dict(), assign=assign)
    x = events(STEPS, 4)
    assert torch.equal(net(x), other(x))
    twin.load_state_dict(net.state_dict())
    assert_trains_alike(net, model, twin, x)
    with pytest.raises(RuntimeError, match=r"Missing key"):
        net.load_state_dict({})


def test_hooks_of_the_net_run_around_a_call() -> None:
    net, _, twin = made()
    seen: list[str] = []
    handles = [
        net.register_forward_pre_hook(lambda module, args: seen.append("before")),
        net.register_forward_hook(lambda module, args, result: seen.append("after")),
        net.register_forward_hook(lambda module, args, result: 2 * result),
        net.register_full_backward_hook(lambda module, to_inputs, to_results: seen.append("backward")),
    ]
    x = events(STEPS, 4).requires_grad_()
    result = net(x)
    assert torch.equal(result, 2 * twin(x))
    result.sum().backward()
    assert seen == ["before", "after", "backward"]
    for handle in handles:
        handle.remove()
    assert torch.equal(net(x), twin(x))


def test_hooks_of_state_dicts_run() -> None:
    net, _, _ = made()
    seen: list[str] = []
    net.register_state_dict_pre_hook(lambda module, prefix, keep: seen.append("before"))
    net.register_state_dict_post_hook(lambda module, state, prefix, meta: seen.append("after"))
    net.register_load_state_dict_pre_hook(lambda module, *args: seen.append("loading"))
    net.register_load_state_dict_post_hook(lambda module, keys: seen.append("loaded"))
    net.load_state_dict(net.state_dict())
    assert seen == ["before", "after", "loading", "loaded"]


def test_a_net_within_a_module() -> None:
    net, model, twin = made()
    whole, wanted = nn.Sequential(net, nn.Tanh()), nn.Sequential(twin, nn.Tanh())
    x = events(STEPS, 4)
    assert list(whole.state_dict()) == list(wanted.state_dict())
    whole.load_state_dict({name: 0.7 * value for name, value in wanted.state_dict().items()})
    wanted.load_state_dict(whole.state_dict())
    assert torch.equal(whole.eval()(x), wanted.eval()(x))
    assert not model.training
    assert model.frozen


def test_forward_may_be_wrapped() -> None:
    """As libraries do that run a model in lower precision or on several machines."""
    net, model, twin = made()
    for module in (net, twin):
        own = module.forward
        module.forward = lambda x, own=own: 2 * own(x)
    assert_trains_alike(net, model, twin, events(STEPS, 4))


def test_an_attribute_that_nobody_has_is_missed_by_the_models_name() -> None:
    net, _, _ = made()
    with pytest.raises(AttributeError, match=r"'Whole' object has no attribute 'no_such_thing'"):
        net.no_such_thing  # noqa: B018
    net.trainer = 3
    assert net.trainer == 3


def test_what_a_net_prints() -> None:
    net, _, _ = made()
    assert repr(net).splitlines()[0].startswith("TracedModule of Whole: rule='measured', bins=7, ")
    assert [line.partition(":")[0].strip() for line in repr(net).splitlines()[1:]] == [
        layer.name for layer in net.report.layers
    ]
    assert "Linear(in_features=5" in repr(net.source)
    assert len(repr(tracecompile.convert(Whole())).splitlines()) == 1, "nothing is known of its layers"
