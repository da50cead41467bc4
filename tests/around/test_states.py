"""States of a step model as its caller reads, clears and sets them in the model itself."""

from __future__ import annotations

import copy
import pickle
from collections import namedtuple
from collections.abc import Callable
from typing import Any

import pytest
import torch
from torch import Tensor, nn

import tracecompile
from around.nets import INPUTS, SPIKE, WIDTH, Step, assert_close, events, gradients, twins
from tracecompile.errors import InvalidInput


class Alone(nn.Module):
    """A layer with a single state, which starts as a number."""

    def __init__(self) -> None:
        super().__init__()
        self.enter = nn.Linear(INPUTS, WIDTH)
        self.v: Any = 0.0

    def clear(self) -> None:
        self.v = 0.0

    def forward(self, x: Tensor) -> Tensor:
        v = 0.85 * self.v + 2.5 * self.enter(x)
        z = SPIKE(v - 0.5)
        self.v = v - 0.5 * z
        return z


class Within(nn.Module):
    """The layer as a part of another module."""

    def __init__(self) -> None:
        super().__init__()
        self.cell, self.leave = Alone(), nn.Linear(WIDTH, 3)

    def clear(self) -> None:
        self.cell.clear()

    def forward(self, x: Tensor) -> Tensor:
        return self.leave(self.cell(x))


MAKES: list[Callable[[], Any]] = [Step, Alone, Within]


def converted(make: Callable[[], Any], bins: int = 8) -> tuple[Any, Any, Any]:
    model, twin = twins(make)
    return tracecompile.convert(model, events(1, 4)[0], bins=bins, backend="eager"), model, twin


def test_the_model_shows_the_states_of_its_net() -> None:
    net, model, twin = converted(Step)
    for x_t in events(3, 4):
        net(x_t), twin(x_t)
        assert torch.equal(model.v, twin.v)
        assert torch.equal(net.z, twin.z), "an attribute of the model is one of the net"
        assert not model.v.requires_grad


@pytest.mark.parametrize("make", MAKES)
def test_the_models_own_method_clears(make: Callable[[], Any]) -> None:
    net, model, twin = converted(make)
    for clear in (model.clear, net.clear):
        loss, wanted = torch.zeros(()), torch.zeros(())
        for module in (model, twin):
            module.zero_grad()
        for t, x_t in enumerate(events(8, 4)):
            if t == 5:
                clear()
                twin.clear()
            got, right = net(x_t), twin(x_t)
            assert torch.equal(got, right)
            loss, wanted = loss + got.square().sum(), wanted + right.square().sum()
        loss.backward()
        wanted.backward()
        assert_close(gradients(model), gradients(twin))
        clear()
        twin.clear()


@pytest.mark.parametrize("make", [Alone, Within])
@pytest.mark.parametrize("how", ["assigned", "in place", "data", "detached"])
def test_a_state_that_is_set_is_gone_on_from(make: Callable[[], Any], how: str) -> None:
    net, model, twin = converted(make)

    def set_state(module: Any) -> None:
        cell = module if make is Alone else module.cell
        if how == "assigned":
            cell.v = torch.full((4, WIDTH), 0.3)
        elif how == "data":
            cell.v.data = torch.full((4, WIDTH), 0.3)
        elif how == "detached":
            cell.v = cell.v.detach()
        else:
            cell.v = cell.v.detach()
            cell.v.mul_(0.5)

    loss, wanted = torch.zeros(()), torch.zeros(())
    for t, x_t in enumerate(events(8, 4)):
        if t == 4 and how != "data":
            set_state(model)
            set_state(twin)
        elif t == 4:
            with torch.no_grad():
                model_cell, twin_cell = (model, twin) if make is Alone else (model.cell, twin.cell)
                twin_cell.v = torch.full((4, WIDTH), 0.3)
                model_cell.v.data = torch.full((4, WIDTH), 0.3)
        got, right = net(x_t), twin(x_t)
        assert torch.equal(got, right)
        loss, wanted = loss + got.square().sum(), wanted + right.square().sum()
    loss.backward()
    wanted.backward()
    assert_close(gradients(model), gradients(twin))


@pytest.mark.parametrize("make", MAKES)
def test_a_snapshot_from_before_the_first_step_clears(make: Callable[[], Any]) -> None:
    net, model, twin = converted(make)
    x, start = events(3, 4), net.snapshot()
    right = copy.deepcopy(twin)(x[0])
    for _ in range(2):
        assert torch.equal(net(x[0]), right)
        net(x[1])
        net.restore(start)
        for module, fresh in zip(model.modules(), twin.modules(), strict=True):
            assert {k: type(v) for k, v in vars(module).items()} == {k: type(v) for k, v in vars(fresh).items()}


@pytest.mark.parametrize("make", MAKES)
@pytest.mark.parametrize("what", ["cleared", "set"])
def test_a_snapshot_holds_what_was_put_into_the_model(make: Callable[[], Any], what: str) -> None:
    net, model, twin = converted(make)
    x = events(5, 4)
    for x_t in x[:3]:
        net(x_t)
        twin(x_t)
    for module in (model, twin):
        cell = module.cell if make is Within else module
        if what == "cleared":
            module.clear()
        else:
            cell.v = torch.full((4, WIDTH), 0.3)
            if make is Step:
                cell.z = torch.zeros(4, WIDTH)
    start = net.snapshot()
    wanted = [twin(x_t) for x_t in x]
    for _ in range(2):
        assert all(map(torch.equal, [net(x_t) for x_t in x], wanted))
        net.restore(start)


def test_a_state_before_the_first_step_is_gone_on_from() -> None:
    net, model, twin = converted(Alone)
    model.v, twin.v = torch.full((4, WIDTH), 0.3), torch.full((4, WIDTH), 0.3)
    for x_t in events(3, 4):
        assert torch.equal(net(x_t), twin(x_t))


def test_a_state_that_requires_a_gradient_gets_it() -> None:
    net, model, twin = converted(Alone)
    x, found = events(8, 4), []
    for module, owner in ((net, model), (twin, twin)):
        start = torch.full((4, WIDTH), 0.3, requires_grad=True)
        owner.v = start
        sum(module(x_t).square().sum() for x_t in x).backward()
        assert start.grad is not None
        found.append({"start": start.grad})
    assert_close(*found)


def test_some_states_alone_are_refused_while_steps_wait_for_backward() -> None:
    net, model, twin = converted(Step)
    for x_t in events(3, 4):
        net(x_t)
    model.v = torch.zeros(4, WIDTH)
    with pytest.raises(InvalidInput, match=r"v was set from outside, and z goes on"):
        net(events(1, 4)[0])
    net.reset()
    x = events(1, 4)[0]
    assert torch.equal(net(x), twin(x))


def test_some_states_alone_may_be_set_where_nothing_is_to_be_learned() -> None:
    net, model, twin = converted(Step)
    with torch.no_grad():
        for t, x_t in enumerate(events(6, 4)):
            if t == 3:
                model.v, twin.v = torch.full((4, WIDTH), 0.2), torch.full((4, WIDTH), 0.2)
            assert torch.equal(net(x_t), twin(x_t))


def test_reset_leaves_the_places_as_conversion_found_them() -> None:
    net, model, _ = converted(Step)
    net(events(1, 4)[0])
    assert model.v is not None
    net.reset()
    assert model.v is None
    assert model.z is None


def test_another_batch_is_told_to_reset_and_a_new_one_starts_afresh() -> None:
    net, _, twin = converted(Step)
    x = events(6, 4)
    for x_t in x[:3]:
        assert torch.equal(net(x_t), twin(x_t))
    for _ in range(2):
        with pytest.raises(InvalidInput, match=r"reset\(\)"):
            net(events(1, 3)[0])
    for x_t in x[3:]:
        assert torch.equal(net(x_t), twin(x_t)), "the sequence is broken afterwards"


@pytest.mark.parametrize("copied", [copy.deepcopy, lambda net: pickle.loads(pickle.dumps(net))], ids=["copy", "pickle"])
def test_a_copy_in_the_middle_of_a_sequence_begins_another(copied: Callable[[Any], Any]) -> None:
    net, _, twin = converted(Step)
    x = events(4, 4)
    for x_t in x:
        net(x_t)
    other = copied(net)
    assert other.source.v is None
    twin.clear()
    for x_t in x:
        assert torch.equal(other(x_t), twin(x_t))


def test_a_model_may_be_converted_twice() -> None:
    """Both nets have the model's one state: a call of one in the midst of the other is seen as set from outside."""
    model, twin = twins(Alone)
    nets = [tracecompile.convert(model, events(1, 4)[0], backend="eager") for _ in range(2)]
    with torch.no_grad():
        for t, x_t in enumerate(events(6, 4)):
            assert torch.equal(nets[t % 2](x_t), twin(x_t))


Pair = namedtuple("Pair", "v z")


class Kept(nn.Module):
    """Both states in one container, of which there are many kinds."""

    def __init__(self, kind: str) -> None:
        super().__init__()
        self.kind = kind
        self.enter, self.lateral = nn.Linear(INPUTS, WIDTH), nn.Linear(WIDTH, WIDTH, bias=False)
        self.state: Any = {"list": [], "dict": {}}.get(kind)

    def clear(self) -> None:
        if self.kind in ("list", "dict"):
            self.state.clear()
        else:
            self.state = None

    def forward(self, x: Tensor) -> Tensor:
        if not self.state:
            v = z = x.new_zeros(x.shape[0], WIDTH)
        elif self.kind == "dict":
            v, z = self.state["v"], self.state["z"]
        else:
            v, z = self.state
        v = 0.85 * v + 2.5 * self.enter(x) + self.lateral(z)
        z = SPIKE(v - 0.5)
        v = v - 0.5 * z
        made: dict[str, Any] = {"tuple": (v, z), "named": Pair(v, z), "list": [v, z], "dict": {"v": v, "z": z}}
        self.state = made[self.kind]
        return z


@pytest.mark.parametrize("kind", ["tuple", "named", "list", "dict"])
def test_states_in_containers_are_cleared_and_set_too(kind: str) -> None:
    net, model, twin = converted(lambda: Kept(kind))
    x = events(8, 4)
    for t, x_t in enumerate(x):
        if t == 3:
            model.clear()
            twin.clear()
        if t == 6:
            for module in (model, twin):
                v, z = (value.detach() for value in (module.state.values() if kind == "dict" else module.state))
                halved: dict[str, Any] = {"tuple": (v / 2, z), "named": Pair(v / 2, z), "list": [v / 2, z]}
                module.state = halved.get(kind, {"v": v / 2, "z": z})
        assert torch.equal(net(x_t), twin(x_t)), f"step {t}"
        assert type(model.state) is type(twin.state)
    net.reset()
    assert not model.state
