"""Errors that are not the net's stay what they are, and the net goes on after them as if nothing had been called."""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

import pytest
import torch
from torch import Tensor, nn
from torch.autograd import Function

import tracecompile
from runtime.nets import Fire, Step, Whole, assert_same, events, gradients, twins
from tracecompile.errors import InvalidInput


class Own(RuntimeError):
    """An error of the user's."""


KINDS = [torch.OutOfMemoryError, KeyboardInterrupt, Own, IndexError, RuntimeError, ValueError]


class Trap:
    """Raises when it is told to, at a call that is chosen; ``hook`` is a function, which no copy of a model copies."""

    def __init__(self) -> None:
        self.kind: type[BaseException] | None = None
        self.after = 0
        self.lasting = False
        self.hook = lambda *args: self.spring()

    def arm(self, kind: type[BaseException], after: int = 0, lasting: bool = False) -> None:
        self.kind, self.after, self.lasting = kind, after, lasting

    def disarm(self) -> None:
        self.kind = None

    def spring(self) -> None:
        if self.kind is None:
            return
        self.after -= 1
        if self.after < 0:
            kind, self.kind = self.kind, self.kind if self.lasting else None
            raise kind("what the user says")


def on_layer(model: nn.Module, trap: Trap) -> None:
    model.get_submodule("below").register_forward_hook(trap.hook)


def before_layer(model: nn.Module, trap: Trap) -> None:
    model.get_submodule("above").register_forward_pre_hook(trap.hook)


def on_gradient(model: nn.Module, trap: Trap) -> None:
    model.get_parameter("below.weight").register_hook(trap.hook)


def after_gradient(model: nn.Module, trap: Trap) -> None:
    model.get_parameter("above.bias").register_post_accumulate_grad_hook(trap.hook)


PLACES = [on_layer, before_layer, on_gradient, after_gradient]


@pytest.mark.parametrize("kind", KINDS)
@pytest.mark.parametrize("place", PLACES)
def test_an_error_of_a_hook_arrives_as_it_is(place: Callable[..., None], kind: type[BaseException]) -> None:
    (model, twin), trap = twins(Whole), Trap()
    place(model, trap)
    net = tracecompile.convert(model, events(6, 2), bins=9, backend="eager")
    x = events(9, 4)
    before = nn.Module.__call__, Function.apply, dict(vars(nn.Module))
    trap.arm(kind)
    with pytest.raises(kind) as caught:
        net(x).square().sum().backward()
    assert type(caught.value) is kind
    assert str(caught.value) == "what the user says"
    assert before == (nn.Module.__call__, Function.apply, dict(vars(nn.Module)))
    gradients(model)
    for module in (net, twin):
        module(x).square().sum().backward()
    assert_same(gradients(model), gradients(twin))


@pytest.mark.parametrize("kind", [torch.OutOfMemoryError, KeyboardInterrupt, Own, IndexError])
@pytest.mark.parametrize("place", [on_layer, before_layer])
def test_an_error_at_the_first_call_arrives_as_it_is(place: Callable[..., None], kind: type[BaseException]) -> None:
    (model, twin), trap = twins(Whole), Trap()
    place(model, trap)
    net, x = tracecompile.convert(model, bins=9, backend="eager"), events(9, 4)
    before = nn.Module.__call__, Function.apply, dict(vars(nn.Module)), range, enumerate
    trap.arm(kind, lasting=True)
    with pytest.raises(kind) as caught:
        net(x)
    trap.disarm()
    assert type(caught.value) is kind
    assert str(caught.value) == "what the user says"
    assert before == (nn.Module.__call__, Function.apply, dict(vars(nn.Module)), range, enumerate)
    for module in (net, twin):
        module(x).square().sum().backward()
    assert_same(gradients(model), gradients(twin))


@pytest.mark.parametrize("bins", [2, 3, 12])
@pytest.mark.parametrize("at", [1, 2, 4, 6, 8])
def test_a_step_that_fails_was_not_taken(at: int, bins: int) -> None:
    found = []
    for fails in (False, True):
        (model, _), trap = twins(Step), Trap()
        before_layer(model, trap)
        net = tracecompile.convert(model, events(1, 4)[0], bins=bins, backend="eager")
        torch.manual_seed(8)
        outputs = []
        for number, x_t in enumerate(events(9, 4)):
            if fails and number == at:
                trap.arm(Own)
                with pytest.raises(Own):
                    net(x_t)
            outputs.append(net(x_t))
        (outputs[-1].square().sum() + torch.stack(outputs).sum()).backward()
        found.append(gradients(model) | {"outputs": torch.stack(outputs).detach()})
    assert_same(found[1], found[0], 0.0)


@pytest.mark.parametrize("at", [1, 2, 4])
def test_backward_after_a_step_that_fails_covers_the_steps_before(at: int) -> None:
    found = []
    for fails in (False, True):
        (model, _), trap = twins(Step), Trap()
        before_layer(model, trap)
        net = tracecompile.convert(model, events(1, 4)[0], bins=2, backend="eager")
        torch.manual_seed(8)
        outputs = [net(x_t) for x_t in events(at, 4)]
        if fails:
            trap.arm(KeyboardInterrupt)
            with pytest.raises(KeyboardInterrupt):
                net(events(1, 4)[0])
        outputs[-1].square().sum().backward()
        found.append(gradients(model))
    assert_same(found[1], found[0], 0.0)


@pytest.mark.parametrize("place", [on_layer, on_gradient])
def test_a_second_run_that_fails_can_be_made_again(place: Callable[..., None]) -> None:
    (model, _), (other, _), trap = twins(Whole), twins(Whole), Trap()
    place(model, trap)
    x, losses = events(15, 4), []
    for owner in (model, other):
        net = tracecompile.convert(owner, events(6, 2), bins=3, backend="eager")
        losses.append(net(x).max(0).values.square().sum())
    trap.arm(torch.OutOfMemoryError, after=0 if place is on_gradient else 5)
    with pytest.raises(torch.OutOfMemoryError):
        losses[0].backward(retain_graph=True)
    gradients(model)
    for loss in losses:
        loss.backward()
    assert_same(gradients(model), gradients(other))


@pytest.mark.parametrize("after", [0, 3, 30, 100])
def test_no_memory_left_is_no_property_of_the_model(after: int) -> None:
    (model, twin), trap = twins(Whole), Trap()
    on_layer(model, trap)
    net, x = tracecompile.convert(model, bins=9, backend="eager"), events(9, 4)
    trap.arm(torch.OutOfMemoryError, after)
    with pytest.raises(torch.OutOfMemoryError, match="what the user says"):
        net(x)
    assert torch.equal(net(x), twin(x))


class Narrow(Function):
    """A surrogate that does not take every number of samples."""

    @staticmethod
    def forward(ctx, u: Tensor) -> Tensor:  # type: ignore[no-untyped-def]
        if u.shape[0] == 13:
            raise RuntimeError("not for thirteen samples")
        ctx.save_for_backward(u)
        return (u > 0).to(u.dtype)

    backward = staticmethod(Fire.backward)


class OfNarrow(Whole):
    """The same with that surrogate."""

    def forward(self, x: Tensor) -> Tensor:
        v, total = x.new_zeros(x.shape[1], 7), 0.0
        for x_t in x:
            v = 0.9 * v + 2 * self.below(x_t)
            z = Narrow.apply(v - 0.5)
            v = v - z
            total = total + self.above(self.lateral(z))
        result: Tensor = total
        return result


def test_an_error_of_a_surrogate_arrives_as_it_is() -> None:
    model, _ = twins(OfNarrow)
    net = tracecompile.convert(model, events(6, 2), backend="eager")
    with pytest.raises(RuntimeError, match="not for thirteen") as caught:
        net(events(9, 13))
    assert type(caught.value) is RuntimeError


def test_what_torch_says_to_inputs_that_do_not_fit_is_explained() -> None:
    model, _ = twins(Whole)
    net = tracecompile.convert(model, events(6, 2), backend="eager")
    with pytest.raises(InvalidInput, match=r"\[9, 4, 6\]"):
        net(torch.rand(9, 4, 6).double())


class Inner(nn.Module):
    """Neurons of the user's own."""

    def forward(self, current: Tensor, v: Tensor) -> tuple[Tensor, Tensor]:
        v = 0.9 * v + current
        z = Fire.apply(v - 0.5)
        return z, v - z


class OfInner(nn.Module):
    """A layer of torch's, and neurons of the user's."""

    def __init__(self) -> None:
        super().__init__()
        self.below, self.neurons = nn.Linear(5, 3), Inner()

    def forward(self, x: Tensor) -> Tensor:
        v, total = x.new_zeros(x.shape[1], 3), x.new_zeros(x.shape[1], 3)
        for x_t in x:
            z, v = self.neurons(self.below(x_t), v)
            total = total + z
        return total


@pytest.mark.filterwarnings("ignore:Full backward hook is firing")  # the model's own
@pytest.mark.parametrize(
    ("path", "register", "said"),
    [
        ("neurons", nn.Module.register_forward_hook, "do not run with the net"),
        ("", nn.Module.register_forward_pre_hook, "do not run with the net"),
        ("below", nn.Module.register_forward_hook, "may run again in backward"),
        ("below", nn.Module.register_full_backward_hook, "do not run as with the model"),
    ],
)
def test_the_report_says_which_hooks_are_not_called(path: str, register: Callable[..., Any], said: str) -> None:
    (model, _), called = twins(OfInner), list[int]()
    register(model.get_submodule(path), lambda *args: called.append(1))
    net = tracecompile.convert(model, events(6, 2), backend="eager")
    hooks = [note for note in net.report.notes if "hooks of" in note]
    assert len(hooks) == 1
    assert said in hooks[0]
    assert (path or "the model itself") in hooks[0]
    called.clear()
    net(events(9, 4))
    assert len(called) == (9 if "again" in said else 0)


def test_the_report_is_silent_without_hooks() -> None:
    net = tracecompile.convert(twins(OfInner)[0], events(6, 2), backend="eager")
    assert not [note for note in net.report.notes if "hook" in note]
