"""Nets that are called from several threads, and modules that run in other threads while a model is captured."""

from __future__ import annotations

import threading
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from typing import Any

import torch
from torch import Tensor, nn
from torch.autograd import Function

import tracecompile
from runtime.nets import Fire, Step, Whole, assert_same, events, gradients, twins


def patched() -> tuple[Any, ...]:
    """Returns what a capture replaces."""
    classes = (torch._C.ScriptFunction, torch._C.ScriptMethod)
    calls = [kind.__call__ for kind in classes]
    return nn.Module.__call__, Function.apply, dict(vars(nn.Module)), range, enumerate, *calls


def in_threads(work: list[Callable[[], Any]]) -> list[Any]:
    """Does all of it at once; returns the results, or the errors."""
    found: list[Any] = [None] * len(work)
    start = threading.Barrier(len(work))

    def run(number: int) -> None:
        start.wait()
        try:
            found[number] = work[number]()
        except Exception as error:
            found[number] = error

    threads = [threading.Thread(target=run, args=(number,)) for number in range(len(work))]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join()
    return found


def test_first_calls_at_once_have_the_values_of_the_model() -> None:
    model, twin = twins(Whole)
    net, before = tracecompile.convert(model, backend="eager"), patched()
    xs = [events(steps, batch) for steps, batch in ((9, 4), (30, 2), (12, 3), (25, 4))]
    found = in_threads([lambda x=x: net(x) for x in xs])  # type: ignore[misc]
    assert before == patched()
    assert all(torch.equal(value, twin(x)) for value, x in zip(found, xs, strict=True))


def test_first_calls_of_several_nets_at_once() -> None:
    pairs, before = [twins(kind) for kind in (Whole, Step, Whole)], patched()
    xs = [events(9, 4), events(1, 4)[0], events(9, 2)]
    found = in_threads(
        [
            lambda model=model, x=x: tracecompile.convert(model, backend="eager")(x)  # type: ignore[misc]
            for (model, _), x in zip(pairs, xs, strict=True)
        ]
    )
    assert before == patched()
    assert all(torch.equal(value, twin(x)) for value, (_, twin), x in zip(found, pairs, xs, strict=True))


def test_every_thread_trains_with_the_gradient_of_its_own_loss() -> None:
    model, twin = twins(Whole)
    net = tracecompile.convert(model, events(6, 2), bins=21, backend="eager")
    xs = [events(21, 3) for _ in range(4)]

    def of(module: nn.Module, owner: nn.Module, x: Tensor) -> dict[str, Tensor]:
        loss = module(x).max(0).values.square().sum()
        found = torch.autograd.grad(loss, list(owner.parameters()))
        return dict(zip((name for name, _ in owner.named_parameters()), found, strict=True))

    found = in_threads([lambda x=x: [of(net, model, x) for _ in range(3)] for x in xs])  # type: ignore[misc]
    for each, x in zip(found, xs, strict=True):
        assert isinstance(each, list), each
        for one in each:
            assert_same(one, of(twin, twin, x))


class Slow(Whole):
    """While it is captured, somebody else gets a turn."""

    turn: Callable[[], None] = staticmethod(lambda: None)

    def forward(self, x: Tensor) -> Tensor:
        y = super().forward(x)
        type(self).turn()
        return y


@contextmanager
def meanwhile(work: Callable[[], Any]) -> Iterator[list[Any]]:
    """Does some work in another thread whenever a Slow runs, to its end."""
    found: list[Any] = []

    def turn() -> None:
        found.extend(in_threads([work]))

    Slow.turn = staticmethod(turn)  # type: ignore[method-assign]
    try:
        yield found
    finally:
        Slow.turn = staticmethod(lambda: None)  # type: ignore[method-assign]


class Other(nn.Module):
    """What the other thread runs: layers, a surrogate, a mode, a counted loop that branches, compiled code."""

    def __init__(self) -> None:
        super().__init__()
        self.layer, self.norm = nn.Linear(3, 3), nn.BatchNorm1d(3)

    def forward(self, x: Tensor) -> Tensor:
        for t in range(4):
            assert type(t) is int
            if t > 1:
                x = self.layer(x)
        for t, _ in enumerate("ab"):
            assert type(t) is int
        return self.norm(Fire.apply(x)) if self.training else x


def test_what_other_threads_run_is_not_captured() -> None:
    (model, twin), other = twins(Slow), Other()
    x, given, before = events(9, 4), torch.rand(5, 3), patched()
    wanted = other(given).detach()

    def work() -> Tensor:
        result: Tensor = other.train()(given)
        result.sum().backward()
        return result.detach()

    with meanwhile(work) as found:
        net = tracecompile.convert(model, events(6, 2), bins=9, backend="eager")
    assert before == patched()
    assert found
    assert all(isinstance(each, Tensor) and torch.equal(each, wanted) for each in found)
    assert not any(getattr(node.target, "__name__", "") == "linear" for node in net.program.epilogue.graph.nodes)
    assert not net.program.reads_mode
    for module in (net, twin):
        module(x).square().sum().backward()
    assert_same(gradients(model), gradients(twin))


def test_a_net_is_called_while_another_model_is_captured() -> None:
    (model, twin), (slow, _) = twins(Whole), twins(Slow)
    net, x = tracecompile.convert(model, events(6, 2), backend="eager"), events(9, 4)
    with meanwhile(lambda: net(x).detach()) as found:
        tracecompile.convert(slow, events(6, 2), backend="eager")
    assert found
    assert all(isinstance(each, Tensor) and torch.equal(each, twin(x)) for each in found)


def test_a_net_that_was_called_is_copied_and_pickled() -> None:
    import copy
    import pickle

    model, twin = twins(Whole)
    net, x = tracecompile.convert(model, events(6, 2), backend="eager"), events(9, 4)
    net(x)
    assert torch.equal(copy.deepcopy(net)(x), twin(x))
    assert torch.equal(pickle.loads(pickle.dumps(net))(x), twin(x))
