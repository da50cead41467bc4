"""Single steps compiled as one call: the values and gradients of the steps as they are, and what is not compiled."""

from __future__ import annotations

import warnings
from collections.abc import Callable, Iterator
from typing import Any

import pytest
import torch
from torch import Tensor, nn

import tracecompile
import tracecompile.nn as snn
from runtime.nets import INPUTS, Step, Whole, events, ran, twins
from tracecompile.errors import InvalidInput
from tracecompile.runtime.engine import step

BATCH, STEPS = 3, 11


class Deep(nn.Module):
    """A recurrent layer whose leak is learnt, and a leaky readout."""

    def __init__(self) -> None:
        super().__init__()
        self.below, self.above = nn.Linear(INPUTS, 6), nn.Linear(6, 2)
        self.neurons = snn.RLIF(6, surrogate=snn.sigmoid(4.0), learn_leak=True)
        self.readout = snn.LI(2, leak=0.9)

    def forward(self, x: Tensor) -> Tensor:
        state = last = None
        found = []
        for x_t in x:
            spikes, state = self.neurons(self.below(x_t), state)
            value, last = self.readout(self.above(spikes), last)
            found.append(value)
        return torch.stack(found)


def nets(kind: type[nn.Module] = Deep, **settings: Any) -> dict[str, tracecompile.TracedModule]:
    """Returns two nets of equal parameters, by their backend."""
    example = events(1, 2)[0] if kind is Step else events(4, 2)
    models = dict(zip(("eager", "inductor"), twins(kind), strict=True))
    for model in models.values():
        nn.init.normal_(model.below.weight, 0, 0.7, generator=torch.Generator().manual_seed(4))
    return {name: tracecompile.convert(model, example, backend=name, **settings) for name, model in models.items()}


def run(net: tracecompile.TracedModule, x: Tensor) -> list[Tensor]:
    return [net(x_t) for x_t in x] if net.program.kind == "step" else list(net.stream(x))


def taught(net: tracecompile.TracedModule, outputs: list[Tensor]) -> list[Tensor]:
    """Gradients of a loss that weighs every output by itself."""
    weights = torch.randn(len(outputs), *outputs[0].shape, generator=torch.Generator().manual_seed(1)).double()
    return list(torch.autograd.grad((torch.stack(outputs) * weights).sum(), list(net.parameters())))


def assert_same(found: list[Tensor], expected: list[Tensor]) -> None:
    assert any(value.norm() > 1e-3 for value in expected)
    for one, other in zip(found, expected, strict=True):
        torch.testing.assert_close(one, other, rtol=1e-9, atol=1e-10)


@pytest.mark.parametrize("kind", [Deep, Whole, Step])
@pytest.mark.parametrize("settings", [{"bins": 3}, {"bins": 1}, {"decay": 0.8}, {"rule": "exact"}], ids=str)
def test_compiled_steps_are_the_steps(kind: type[nn.Module], settings: dict[str, Any]) -> None:
    both, x = nets(kind, **settings), events(STEPS, BATCH)
    expected, found = (run(net, x) for net in both.values())
    assert_same(found, expected)
    assert_same(taught(both["inductor"], found), taught(both["eager"], expected))
    with torch.no_grad():  # the states go on
        assert_same(*(run(net, x[:4]) for net in reversed(both.values())))
    execution = both["inductor"].report.execution
    assert execution is not None
    assert (execution.backend, execution.obstacles) == ("inductor", ())
    assert execution.compiled > 0
    assert "a single step, as asked for" in str(both["inductor"].report)
    assert ran(both["eager"]) == ("eager", 1)


def test_a_bin_for_every_step_is_backpropagation_through_time() -> None:
    both, x = nets(bins=STEPS), events(STEPS, BATCH)
    net = both["inductor"]
    model = both["eager"].source
    parameters = list(model.parameters())
    weights = torch.randn(STEPS, BATCH, 2, generator=torch.Generator().manual_seed(1)).double()
    expected = torch.autograd.grad((model(x) * weights).sum(), parameters)
    assert_same(taught(net, list(net.stream(x))), list(expected))


def test_spikes_in_single_precision_are_those_of_the_steps_bit_for_bit() -> None:
    x = events(60, BATCH).float()
    example, outputs = x[:4, :2], []
    for model, name in zip(twins(Deep), ("eager", "inductor"), strict=True):
        nn.init.normal_(model.below.weight, 0, 0.7, generator=torch.Generator().manual_seed(4))
        net = tracecompile.convert(model.float(), example, backend=name)
        outputs.append(torch.stack(list(net.stream(x))).detach())
    assert torch.equal(*outputs)
    assert outputs[0].std() > 0


def test_windows_follow_one_another() -> None:
    both, x = nets(bins=2), events(24, BATCH)
    found = {}
    for name, net in both.items():
        optimizer, kept, seen = torch.optim.SGD(net.parameters(), 0.05), [], []
        for number, output in enumerate(net.stream(x), start=1):
            kept.append(output)
            seen.append(output.detach())
            if number % 6 == 0:
                torch.stack(kept).square().sum().backward()
                optimizer.step()
                optimizer.zero_grad()
                kept.clear()
            elif number == 9:
                net.detach()
                kept.clear()
        found[name] = seen
    assert_same(found["inductor"], found["eager"])


def test_what_is_written_into_the_model_is_seen_at_the_next_step() -> None:
    both, x = nets(), events(10, BATCH)
    changes: dict[int, Callable[[Any], Any]] = {
        3: lambda model: nn.init.ones_(model.below.weight),
        5: lambda model: setattr(model.above, "weight", nn.Parameter(torch.ones_like(model.above.weight))),
        7: lambda model: [nn.init.zeros_(p) for p in model.neurons.parameters()],
        8: lambda model: model.load_state_dict({name: value * 0.5 for name, value in model.state_dict().items()}),
    }
    found: dict[str, list[Tensor]] = {}
    with torch.no_grad():
        for name, net in both.items():
            found[name] = []
            for number, output in enumerate(net.stream(x)):
                found[name].append(output)
                changes.get(number, lambda model: None)(net.source)
    assert_same(found["inductor"], found["eager"])
    assert ran(both["inductor"]) == ("inductor", 1)


def test_samples_that_start_afresh() -> None:
    both, x = nets(rule="exact"), events(8, BATCH)
    found = {}
    for name, net in both.items():
        outputs = list(net.stream(x[:4]))
        net.reset(samples=torch.tensor([True, False, True]))
        outputs += list(net.stream(x[4:]))
        found[name] = [*(output.detach() for output in outputs), *taught(net, outputs)]
    assert_same(found["inductor"], found["eager"])


def test_a_restored_net_goes_on() -> None:
    both, x = nets(bins=4), events(8, BATCH)
    net = both["inductor"]
    list(net.stream(x[:5]))
    snapshot = net.snapshot()
    expected = list(net.stream(x[5:]))
    other = nets(bins=4)["inductor"]
    other.restore(snapshot)
    found = list(other.stream(x[5:]))
    assert_same(found, expected)
    assert_same(taught(other, found), taught(net, expected))


class Slope(torch.autograd.Function):
    """A surrogate whose slope no module holds."""

    slope = 1.0

    @staticmethod
    def forward(ctx, u: Tensor) -> Tensor:  # type: ignore[no-untyped-def]
        return (u > 0).to(u.dtype)

    @staticmethod
    def backward(ctx, g: Tensor) -> Tensor:  # type: ignore[no-untyped-def]
        return Slope.slope * g


class Outside(Step):
    """Spikes by `Slope`."""

    def forward(self, x: Tensor) -> Tensor:
        if self.v is None or self.y is None:
            self.v, self.y = x.new_zeros(x.shape[0], 7), x.new_zeros(x.shape[0], 3)
        v = 0.9 * self.v + 2 * self.below(x)
        z = Slope.apply(v - 0.5)
        self.v = v - 0.5 * z
        self.y = 0.8 * self.y + self.above(z)
        return self.y


@pytest.fixture
def slope() -> Iterator[None]:
    yield
    Slope.slope = 1.0


def test_a_slope_that_was_changed_meanwhile_is_taken_from_the_next_window_on(slope: None) -> None:
    example, x = events(1, 2)[0], events(4, BATCH)
    both = [
        tracecompile.convert(model, example, backend=name)
        for model, name in zip(twins(Outside), ("eager", "inductor"), strict=True)
    ]
    for value in (1.0, 0.25):
        Slope.slope = value
        theirs, ours = (taught(net, run(net, x)) for net in both)
        assert_same(ours, theirs)
    assert both[1].report.execution is not None
    assert both[1].report.execution.obstacles == ()


# ---------------------------------------------------------------------------------------------------------------------
# What is not compiled
# ---------------------------------------------------------------------------------------------------------------------


def test_hooks_are_called_once_a_step() -> None:
    model, calls, x = twins(Deep)[0], list[int](), events(5, 2)
    model.below.register_forward_hook(lambda module, args, output: calls.append(1))
    net = tracecompile.convert(model, events(4, 2), backend="inductor")
    with torch.no_grad():
        with pytest.warns(UserWarning, match="without being compiled: a module in it has hooks"):
            list(net.stream(x))
        calls.clear()
        list(net.stream(x))
    assert len(calls) == 5
    assert "single steps: not compiled, a module in it has hooks" in str(net.report)


def test_a_batch_of_many_sizes_is_not_compiled_for_ever(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(step, "MOST_KINDS", 2)
    both = nets()
    with warnings.catch_warnings(record=True) as told, torch.no_grad():
        warnings.simplefilter("always")
        for batch in (1, 2, 3, 4):
            x = events(3, batch)
            for net in both.values():
                net.reset()
            assert_same(*(run(net, x) for net in reversed(both.values())))
    assert len([each for each in told if "more than 2 kinds" in str(each.message)]) == 1


def test_autograd_goes_through_steps_as_they_are() -> None:
    net = tracecompile.convert(twins(Whole)[0], events(4, 2), backend="inductor", rule="bptt")
    list(net.stream(events(3, 2)))
    assert ran(net) == ("eager", 1)
    assert "autograd may go through" in str(net.report)


def test_an_error_in_a_later_step_is_the_callers() -> None:
    for net in nets().values():
        x = events(6, BATCH)
        x[4, 0, 0] = torch.nan
        with torch.no_grad(), pytest.raises(InvalidInput, match=r"The input x holds NaN"):
            list(net.stream(x))
        with torch.no_grad(), pytest.raises(RuntimeError, match="cannot be multiplied"):
            list(net.stream([x[0], x[1, :, :3]]))
        with torch.no_grad():
            assert len(list(net.stream(x[:2]))) == 2
        assert net.report.execution is not None
        assert net.report.execution.obstacles == ()
