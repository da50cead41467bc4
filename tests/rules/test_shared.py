"""What the derivatives of a core have in common is computed once, and steps that nobody looks at compute no more."""

from __future__ import annotations

import operator

import pytest
import torch
from torch import Tensor, fx, nn

import tracecompile
from tracecompile import nn as snn
from tracecompile.rules.accumulation import product_accumulated
from tracecompile.rules.measured.lines import MeasuredLines
from tracecompile.rules.measured.rule import MeasuredCore
from tracecompile.runtime.forms import Form
from tracecompile.runtime.loop import Loop
from tracecompile.runtime.module import session_of

STEPS, BATCH, INPUTS, NEURONS = 12, 3, 6, 6


class Net(nn.Module):
    """Inputs, neurons, and the mean of a readout."""

    def __init__(self, detach_reset: bool) -> None:
        super().__init__()
        self.below, self.readout = nn.Linear(INPUTS, NEURONS), nn.Linear(NEURONS, NEURONS)
        self.neurons = snn.RLIF(NEURONS, detach_reset=detach_reset, surrogate=snn.sigmoid(4.0))

    def forward(self, x: Tensor) -> Tensor:
        state, total = None, torch.zeros(())
        for x_t in x:
            spikes, state = self.neurons(self.below(x_t), state)
            total = total + self.readout(spikes)
        return total / len(x)


def converted(detach_reset: bool, **settings: object) -> tuple[tracecompile.TracedModule, Tensor]:
    torch.manual_seed(2)
    model, x = Net(detach_reset).double(), 2 * torch.randn(STEPS, BATCH, INPUTS).double()
    return tracecompile.convert(model, x, backend="eager", **settings), x  # type: ignore[arg-type]


def lines_of(net: tracecompile.TracedModule) -> MeasuredLines:
    (core,) = [layer.response for layer in net.program.layers if layer.spikes]
    assert isinstance(core, MeasuredCore)
    return core.lines


def sums_of(net: tracecompile.TracedModule) -> tuple[list[fx.Node], list[fx.Node]]:
    """Returns the lines in which tangents and responses are moved on."""
    lines = lines_of(net)
    output = next(node for node in reversed(lines.graph.graph.nodes) if node.op == "output")
    moved = list(output.args[0][1])  # type: ignore[index]
    return moved[: len(lines.tangents)], moved[len(lines.tangents) :]


def test_a_spike_answers_to_what_the_next_membrane_is_made_of() -> None:
    tangents, responses = sums_of(converted(detach_reset=True)[0])
    for tangent, response in zip(tangents, responses, strict=True):
        assert response.target is product_accumulated
        assert response.args[2] is tangent.args[0], "the tangent of the membrane before the reset"


def test_what_has_no_factor_in_common_is_a_sum_of_its_own() -> None:
    tangents, responses = sums_of(converted(detach_reset=False)[0])
    shared = [response.args[2:3] == tangent.args[:1] for tangent, response in zip(tangents, responses, strict=True)]
    assert not any(shared)


def test_no_line_is_left_that_nobody_reads() -> None:
    nodes = lines_of(converted(detach_reset=True)[0]).graph.graph.nodes
    assert all(node.users for node in nodes if node.op == "call_function" and node.target is not operator.getitem)


@pytest.mark.parametrize("detach_reset", [True, False])
def test_a_step_unseen_moves_the_same_on(detach_reset: bool) -> None:
    net, x = converted(detach_reset)
    net(x).sum().backward()
    executor = session_of(net).executor
    assert executor is not None
    (form,) = executor.forms.made.values()
    given = [torch.randn(BATCH, NEURONS).double() if "size" not in name else 12 for name in _taken(form)]
    given[0] = x[0]
    seen, unseen = form.step(*given), form.unseen(*given)
    assert unseen[-1] == ()
    for one, other in zip(seen[:-1], unseen[:-1], strict=True):
        assert all(torch.equal(*pair) for pair in zip(one, other, strict=True))
    assert len(form.unseen.graph.nodes) < len(form.step.graph.nodes)


def _taken(form: Form) -> list[str]:
    return [node.name for node in form.step.graph.nodes if node.op == "placeholder"]


@pytest.mark.parametrize("bins", [1, 4, STEPS])
def test_gradients_are_those_of_steps_that_are_all_seen(bins: int, monkeypatch: pytest.MonkeyPatch) -> None:
    net, x = converted(True, bins=bins)
    net(x).square().sum().backward()
    found = {name: parameter.grad.clone() for name, parameter in net.named_parameters() if parameter.grad is not None}
    net.zero_grad()
    step = Loop.step
    monkeypatch.setattr(Loop, "step", lambda loop, inputs, *, seen: step(loop, inputs))
    net(x).square().sum().backward()
    assert found
    for name, parameter in net.named_parameters():
        assert torch.equal(parameter.grad, found[name])


@pytest.mark.parametrize("dtype", [torch.float64, torch.float32, torch.bfloat16], ids=str)
@pytest.mark.parametrize("shape", [(), (2, 3)], ids=str)
def test_a_sum_of_products_has_the_shape_of_the_value_and_is_not_lost_in_16_bits(
    dtype: torch.dtype, shape: tuple[int, ...]
) -> None:
    value, change = torch.zeros(2, 3, dtype=dtype), torch.ones(shape, dtype=torch.promote_types(dtype, torch.float32))
    total = torch.zeros(())
    for _ in range(3):
        total = product_accumulated(total, 0.5 * change, change, value)
    assert total.dtype == change.dtype
    assert torch.equal(total, torch.full((2, 3), 1.5, dtype=change.dtype))
