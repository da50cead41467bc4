"""Streams that look ahead: the outputs, gradients and states of a stream that does not."""

from __future__ import annotations

import gc
import weakref
from collections.abc import Callable, Iterator
from typing import Any

import pytest
import torch
from torch import Tensor, nn

import tracecompile
from tracecompile import nn as snn
from tracecompile.runtime import together
from tracecompile.runtime.engine import compiled, work
from tracecompile.runtime.module import session_of

STEPS = 37
SIZES = [1, 2, 7, 16, 100]


class Stack(nn.Module):
    """A layer that others feed, a recurrent one, and a leaky readout."""

    def __init__(self, drop: float = 0.0, norm: bool = False) -> None:
        super().__init__()
        self.first, self.second, self.last = nn.Linear(6, 12), nn.Linear(12, 12), nn.Linear(12, 3)
        self.dense = snn.LIF(12, leak=0.8, surrogate=snn.sigmoid(4.0))
        self.recurrent = snn.RLIF(12, surrogate=snn.sigmoid(4.0), learn_leak=True)
        self.readout = snn.LI(3, leak=0.9)
        self.norm = nn.BatchNorm1d(12) if norm else nn.Identity()
        self.drop = nn.Dropout(drop) if drop else nn.Identity()

    def forward(self, x: Tensor) -> Tensor:
        dense = recurrent = readout = None
        found = []
        for x_t in x:
            spikes, dense = self.dense(self.norm(self.first(x_t)), dense)
            spikes, recurrent = self.recurrent(self.drop(self.second(spikes)), recurrent)
            value, readout = self.readout(self.last(spikes), readout)
            found.append(value)
        return torch.stack(found)


def made(**settings: Any) -> tuple[Stack, Callable[[], tracecompile.TracedModule], Tensor]:
    """Returns a model, what converts it, and a sequence."""
    torch.manual_seed(5)
    model = Stack(norm=settings.pop("norm", False), drop=settings.pop("drop", 0.0)).double()
    x = 3 * torch.randn(STEPS, 4, 6, dtype=torch.float64)
    return model, lambda: tracecompile.convert(model, x[:5], **{"backend": "eager", **settings}), x


def taught(net: nn.Module, outputs: list[Tensor]) -> list[Tensor]:
    """Gradients of a loss that weighs every output of every step by itself."""
    generator = torch.Generator().manual_seed(1)
    weights = [torch.randn(output.shape, generator=generator, dtype=output.dtype) for output in outputs]
    loss = torch.stack([(output * weight).sum() for output, weight in zip(outputs, weights, strict=True)]).sum()
    return list(torch.autograd.grad(loss, list(net.parameters())))


def assert_same(found: list[Tensor], expected: list[Tensor]) -> None:
    assert any(gradient.norm() > 1e-3 for gradient in expected)
    for one, other in zip(found, expected, strict=True):
        torch.testing.assert_close(one, other, rtol=1e-9, atol=1e-9)


RULES: list[dict[str, Any]] = [
    {"bins": 4},
    {"bins": 3},
    {"bins": 1},
    {"bins": STEPS},
    {"bins": 4, "chunk": 4},
    {"rule": "exact"},
    {"rule": "exact", "chunk": 5, "snapshots": 2},
    {"rule": "analytic"},
    {"decay": 0.8},
    {"norm": True},
]


@pytest.mark.parametrize("settings", RULES, ids=str)
def test_a_stream_that_looks_ahead_is_the_stream_that_does_not(settings: dict[str, Any]) -> None:
    model, convert, x = made(**settings)
    before = {name: value.clone() for name, value in model.state_dict().items()}
    reference = convert()
    expected = list(reference.stream(x))
    wanted = taught(reference, expected)
    with torch.no_grad():
        following = list(reference.stream(x[:3]))
    statistics = {name: value.clone() for name, value in model.named_buffers()}
    for size in SIZES:
        model.load_state_dict(before)
        net = convert()
        outputs = list(net.stream(x, lookahead=size))
        torch.testing.assert_close(torch.stack(outputs), torch.stack(expected), rtol=1e-9, atol=1e-9)
        assert_same(taught(net, outputs), wanted)
        with torch.no_grad():
            torch.testing.assert_close(torch.stack(list(net.stream(x[:3]))), torch.stack(following))
        for name, value in model.named_buffers():
            torch.testing.assert_close(value, statistics[name])


@pytest.mark.parametrize("settings", [{"bins": STEPS}, {"rule": "exact"}], ids=str)
def test_it_learns_what_backpropagation_through_time_teaches(settings: dict[str, Any]) -> None:
    model, convert, x = made(**settings)
    net = convert()
    expected = taught(model, list(model(x)))
    assert_same(taught(net, list(net.stream(x, lookahead=16))), expected)


@pytest.mark.parametrize("settings", [{"bins": 4}, {"rule": "exact"}], ids=str)
def test_several_windows_states_are_carried_over_and_detach_ends_one(settings: dict[str, Any]) -> None:
    def trained(lookahead: int) -> tuple[list[Tensor], list[Tensor]]:
        model, convert, x = made(**settings)
        net, kept, seen = convert(), [], []
        for step, output in enumerate(net.stream(x, lookahead=lookahead), start=1):
            kept.append(output)
            seen.append(output.detach())
            if step % 12 == 6:
                net.detach()
                kept.clear()
            elif step % 12 == 0:
                torch.stack(kept).square().sum().backward()
                kept.clear()
                with torch.no_grad():
                    for parameter in model.parameters():
                        parameter -= 0.01 * (parameter.grad if parameter.grad is not None else 0)
        return seen, [p.grad for p in model.parameters() if p.grad is not None]

    (seen, gradients), (found, ours) = trained(1), trained(6)
    torch.testing.assert_close(torch.stack(found), torch.stack(seen), rtol=1e-8, atol=1e-8)
    assert_same(ours, gradients)


@pytest.mark.parametrize("settings", [{"bins": 2}, {"bins": 1}, {"rule": "exact"}], ids=str)
def test_compiled_scans_and_steps_take_turns(settings: dict[str, Any], monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(compiled, "PIECE", 3)
    monkeypatch.setattr(compiled, "RECURRENT_PIECE", 2)
    monkeypatch.setattr(together, "RECURRENT_PIECE", 2)
    _, convert, x = made(**settings)
    reference = convert()
    expected = list(reference.stream(x[:23]))
    _, convert, x = made(**settings, backend="inductor")
    net = convert()
    found = list(net.stream(x[:23], lookahead=6))
    torch.testing.assert_close(torch.stack(found), torch.stack(expected), rtol=1e-9, atol=1e-9)
    assert_same(taught(net, found), taught(reference, expected))
    with torch.no_grad():
        rest = [torch.stack(list(each.stream(x[23:], lookahead=5))) for each in (net, reference)]
    torch.testing.assert_close(*rest, rtol=1e-9, atol=1e-9)
    execution = net.report.execution
    assert execution is not None
    assert (execution.backend, execution.chunk, execution.obstacles) == ("inductor", 5, ())
    assert execution.compiled > 0


def test_auto_counts_what_is_streamed(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(work, "A_STEP", 0)
    monkeypatch.setattr(work, "PAID_BACK", 1 << 40)
    _, convert, x = made(backend="auto")
    net = convert()
    list(net.stream(x[:36], lookahead=18))
    states = sum(state.numel() for state in session_of(net).live.states or ())
    executor = session_of(net).executor
    assert executor is not None
    assert executor.work.updates == 36 * states
    assert executor.work.calls == 2
    list(net.stream(x[:30], lookahead=15))
    with torch.no_grad():
        list(net.stream(x[:36], lookahead=18))
    assert executor.work.updates == 36 * states, "too few steps to compile, and what is not trained"


def test_without_gradients_the_states_go_on() -> None:
    model, convert, x = made()
    net = convert()
    with torch.no_grad():
        found = [*net.stream(x[:20], lookahead=8), *net.stream(x[20:], lookahead=3)]
        torch.testing.assert_close(torch.stack(found), model(x))
    assert net.report.execution is not None
    assert net.report.execution.chunk == 3
    assert "may look 3 steps ahead" in str(net.report)


def test_inputs_that_learn_get_their_gradients() -> None:
    model, convert, x = made(bins=STEPS)
    scale, other = (torch.ones((), dtype=torch.float64, requires_grad=True) for _ in range(2))
    model(x * scale).square().sum().backward()
    torch.stack(list(convert().stream((x_t * other for x_t in x), lookahead=8))).square().sum().backward()
    assert scale.grad is not None
    assert other.grad is not None
    assert scale.grad.abs() > 1e-3
    torch.testing.assert_close(other.grad, scale.grad)


def test_random_numbers_are_drawn_in_the_order_of_the_steps() -> None:
    _, convert, x = made(drop=0.4)
    found = []
    for lookahead in (1, 8):
        torch.manual_seed(2)
        found.append(torch.stack(list(convert().stream(x, lookahead=lookahead))).detach())
    torch.testing.assert_close(found[1], found[0], rtol=1e-9, atol=1e-9)


def test_no_more_inputs_are_held_than_it_looks_ahead() -> None:
    _, convert, x = made()
    living: list[weakref.ref[Tensor]] = []
    most = 0

    def steps() -> Iterator[Tensor]:
        nonlocal most
        for x_t in x:
            value = x_t.clone()
            living.append(weakref.ref(value))
            most = max(most, sum(ref() is not None for ref in living))
            yield value

    for _ in convert().stream(steps(), lookahead=4):
        gc.collect()
    assert len(living) == STEPS
    assert most <= 5


def test_one_tensor_that_is_filled_again_and_again_may_be_streamed() -> None:
    model, convert, x = made()
    buffer = torch.empty_like(x[0])
    with torch.no_grad():
        found = list(convert().stream((buffer.copy_(x_t) for x_t in x), lookahead=7))
        torch.testing.assert_close(torch.stack(found), model(x))


def test_a_step_of_another_size_begins_another_piece() -> None:
    model, convert, x = made()
    net = convert()
    with torch.no_grad():
        found = list(net.stream([x_t.float().double() if time % 2 else x_t for time, x_t in enumerate(x)], lookahead=5))
        assert len(found) == STEPS
        net.reset()
        first = next(net.stream([x[0], x[1, :2]], lookahead=2))
        torch.testing.assert_close(first, model(x[:1])[0])


def test_where_the_callers_iterator_fails_what_came_before_is_given() -> None:
    model, convert, x = made()

    def steps() -> Iterator[Tensor]:
        yield from x[:3]
        raise OSError("the sensor is gone")

    stream, found = convert().stream(steps(), lookahead=8), []
    with torch.no_grad():
        for _ in range(3):
            found.append(next(stream))
        with pytest.raises(OSError, match="sensor"):
            next(stream)
        torch.testing.assert_close(torch.stack(found), model(x[:3]))
