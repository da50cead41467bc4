"""Several backward passes through one forward: each finds what it would find alone."""

from __future__ import annotations

import weakref
from collections.abc import Callable

import pytest
import torch
from torch import Tensor, nn
from torch.utils._python_dispatch import TorchDispatchMode

import tracecompile
from runtime.nets import Step, Whole, assert_same, events, gradients, twins

Loss = Callable[[Tensor], Tensor]

LOSSES: dict[str, Loss] = {
    "maximum": lambda y: y.max(0).values.square().sum(),
    "window": lambda y: y[5:8].square().sum(),
    "one early step": lambda y: y[4].square().sum(),
    "last step": lambda y: y[-1].square().sum(),
    "mean": lambda y: y.mean(0).square().sum(),
}


class OverTime(Whole):
    """What it returns is weighed over time, which backward computes once more."""

    def forward(self, x: Tensor) -> Tensor:
        y = super().forward(x)
        return (y.softmax(0) * y).sum(0)


def alone(loss: Loss, kind: type[nn.Module] = Whole, bins: int = 3) -> dict[str, Tensor]:
    model, _ = twins(kind)
    net = tracecompile.convert(model, events(6, 2), bins=bins, backend="eager")
    torch.manual_seed(5)
    loss(net(events(17, 4))).backward()
    return gradients(model)


@pytest.mark.parametrize("loss", LOSSES.values(), ids=LOSSES)
def test_a_graph_that_is_retained_gives_the_same_gradient_again(loss: Loss) -> None:
    model, _ = twins(Whole)
    net = tracecompile.convert(model, events(6, 2), bins=3, backend="eager")
    torch.manual_seed(5)
    found = loss(net(events(17, 4)))
    for retain in (True, True, False):
        found.backward(retain_graph=retain)
        assert_same(gradients(model), alone(loss))


@pytest.mark.parametrize("later", LOSSES.values(), ids=LOSSES)
@pytest.mark.parametrize("earlier", LOSSES.values(), ids=LOSSES)
def test_a_gradient_does_not_depend_on_an_earlier_loss(earlier: Loss, later: Loss) -> None:
    model, _ = twins(Whole)
    net = tracecompile.convert(model, events(6, 2), bins=3, backend="eager")
    torch.manual_seed(5)
    y = net(events(17, 4))
    earlier(y).backward(retain_graph=True)
    gradients(model)
    later(y).backward()
    assert_same(gradients(model), alone(later))


def test_what_is_computed_again_for_backward_is_so_as_often_as_asked() -> None:
    loss: Loss = lambda y: y.square().sum()  # noqa: E731
    model, twin = twins(OverTime)
    net = tracecompile.convert(model, events(6, 2), bins=17, backend="eager")
    torch.manual_seed(5)
    x = events(17, 4)
    found = loss(net(x))
    loss(twin(x)).backward()
    wanted = gradients(twin)
    for retain in (True, False):
        found.backward(retain_graph=retain)
        assert_same(gradients(model), wanted)


def test_a_graph_that_is_not_retained_cannot_be_used_again() -> None:
    model, _ = twins(Whole)
    net = tracecompile.convert(model, events(6, 2), bins=3, backend="eager")
    loss = net(events(9, 4)).sum()  # a sum keeps nothing that could be missed
    loss.backward()
    with pytest.raises(RuntimeError, match="second time"):
        loss.backward()


def test_what_a_pass_needed_is_given_back_with_the_graph() -> None:
    model, _ = twins(Whole)
    net, x = tracecompile.convert(model, events(6, 2), bins=3, backend="eager"), events(9, 4)
    loss, held = net(x)[3:5].sum(), weakref.ref(x)
    del x
    loss.backward(retain_graph=True)
    assert held() is not None
    loss.backward()
    assert held() is None


@pytest.mark.parametrize("of", ["latest", "earlier", "both"])
def test_a_stream_gives_the_same_gradient_again(of: str) -> None:
    found = []
    for rounds in (1, 3):
        model, _ = twins(Step)
        net = tracecompile.convert(model, events(1, 4)[0], bins=2, backend="eager")
        torch.manual_seed(5)
        outputs = [net(x_t) for x_t in events(11, 4)]
        chosen = {"latest": outputs[-1:], "earlier": outputs[3:5], "both": [outputs[9], outputs[10]]}[of]
        loss = torch.stack([y.square().sum() for y in chosen]).sum()
        for _ in range(rounds):
            gradients(model)
            loss.backward(retain_graph=True)
        found.append(gradients(model))
    assert_same(found[1], found[0])


def test_a_loss_on_a_stream_does_not_depend_on_an_earlier_one() -> None:
    found = []
    for earlier in (False, True):
        model, _ = twins(Step)
        net = tracecompile.convert(model, events(1, 4)[0], bins=2, backend="eager")
        torch.manual_seed(5)
        outputs = [net(x_t) for x_t in events(11, 4)]
        if earlier:
            outputs[2].square().sum().backward(retain_graph=True)
            gradients(model)
        outputs[-1].square().sum().backward()
        found.append(gradients(model))
    assert_same(found[1], found[0])


def test_a_pass_that_failed_leaves_nothing_to_the_next() -> None:
    model, twin = twins(Step)
    net = tracecompile.convert(model, events(1, 4)[0], bins=11, backend="eager")
    x, told = events(11, 4), [True]

    def fails(gradient: Tensor) -> None:
        if told:
            raise KeyboardInterrupt

    outputs = [net(x_t) for x_t in x]
    losses = [y.square().sum() for y in outputs]
    early = outputs[0] * 1.0
    early.register_hook(fails)  # reached after the signals of the later steps
    with pytest.raises(KeyboardInterrupt):
        (torch.stack(losses).sum() + early.sum()).backward(retain_graph=True)
    told.clear()
    gradients(model)
    torch.stack(losses).sum().backward()
    torch.stack([twin(x_t).square().sum() for x_t in x]).sum().backward()
    assert_same(gradients(model), gradients(twin))


class Counted(TorchDispatchMode):
    """Counts what torch is asked for."""

    def __init__(self) -> None:
        super().__init__()
        self.count = 0

    def __torch_dispatch__(self, func, types, args=(), kwargs=None):  # type: ignore[no-untyped-def]
        self.count += 1
        return func(*args, **(kwargs or {}))


def test_a_step_costs_the_same_with_many_bins() -> None:
    counts = []
    for bins in (4, 300):
        model, _ = twins(Step)
        net = tracecompile.convert(model, events(1, 4)[0], bins=bins, backend="eager")
        net(events(1, 4)[0]).sum().backward()
        with Counted() as counted:
            for x_t in events(3, 4):
                net(x_t).sum().backward()
        counts.append(counted.count)
    assert counts[0] == counts[1]


def test_a_stream_of_many_bins_is_backpropagation_through_time() -> None:
    model, twin = twins(Step)
    net, x = tracecompile.convert(model, events(1, 4)[0], bins=60, backend="eager"), events(25, 3)
    for module in (net, twin):
        torch.stack([module(x_t).square().sum() for x_t in x]).sum().backward()
    assert_same(gradients(model), gradients(twin))
