"""A step of a few nodes in trace form, of which a call asks for less."""

from __future__ import annotations

import operator

import pytest
import torch
from torch import Tensor, fx

from tracecompile.graphs.pruning import pruned
from tracecompile.layers import Accrual
from tracecompile.rules.accumulation import accumulated

ACCRUALS = (
    Accrual("trace_x", "trace", "", ("x", ""), "x"),
    Accrual("tangent_v", "tangent", "lif", ("x", "v"), "v"),
    Accrual("tangent_w", "tangent", "lif", ("w", "v"), "v"),
    Accrual("response_x", "response", "lif", ("y", "x"), "y"),
    Accrual("response_w", "response", "lif", ("y", "w"), "y"),
)
NAMES = [accrual.name for accrual in ACCRUALS]


def step() -> fx.GraphModule:
    """A leaky unit v' = w v + x, y = 2 v', with the tangents of v by x and by w, and what y answers to both."""
    graph = fx.Graph()
    x, v, w, *totals = (graph.placeholder(name) for name in ("x", "v", "w", *NAMES))
    trace_x, tangent_v, tangent_w, response_x, response_w = totals
    call = graph.call_function
    following = call(operator.add, (call(operator.mul, (w, v)), x))
    y = call(operator.mul, (following, 2.0))
    by_x = call(operator.add, (call(operator.mul, (w, tangent_v)), 1.0))
    by_w = call(torch.addcmul, (v, w, tangent_w))
    answers = [call(operator.mul, (tangent, 2.0)) for tangent in (by_x, by_w)]
    sums = [call(accumulated, pair) for pair in zip((response_x, response_w), answers, strict=True)]
    moved = (call(accumulated, (trace_x, x)), by_x, by_w, *sums)
    graph.output(((y,), (following,), moved, (x,), (((y,), tuple(answers), (w,)),)))
    return fx.GraphModule({}, graph, "TracedStep")


def takes(module: fx.GraphModule) -> list[str]:
    return [node.name for node in module.graph.nodes if node.op == "placeholder"]


def given() -> dict[str, Tensor]:
    return dict(zip(["x", "v", "w", *NAMES], torch.randn(8, 3), strict=True))


def test_what_nobody_leaves_out_stays_as_it_is() -> None:
    whole = step()
    assert pruned(whole, ACCRUALS, ()) == (whole, ACCRUALS)


@pytest.mark.parametrize(
    "dropped", [{"tangent_w", "response_w"}, {"tangent_v", "response_x"}, {"trace_x"}, {"response_w"}, set(NAMES)]
)
def test_what_is_left_is_what_it_was(dropped: set[str]) -> None:
    whole, values = step(), given()
    found, carried = pruned(whole, ACCRUALS, dropped)
    kept = [name for name in NAMES if name not in dropped]
    assert [accrual.name for accrual in carried] == kept
    wanted = whole(*values.values())
    outputs, states, moved, read, of_layers = found(*(values[name] for name in takes(found)))
    assert torch.equal(outputs[0], wanted[0][0])
    assert torch.equal(states[0], wanted[1][0])
    assert torch.equal(read[0], values["x"])
    expected = {name: value for name, value in zip(NAMES, wanted[2], strict=True) if name in kept}
    assert len(moved) == len(expected)
    assert all(map(torch.equal, moved, expected.values()))
    ((made, answers, slopes),) = of_layers
    answered = {name: each for name, each in zip(NAMES[3:], wanted[4][0][1], strict=True) if name in kept}
    assert len(answers) == len(answered)
    assert all(map(torch.equal, answers, answered.values()))
    assert torch.equal(made[0], outputs[0])
    assert torch.equal(slopes[0], values["w"])


def test_nothing_is_computed_for_what_is_left_out() -> None:
    whole = step()
    found, _ = pruned(whole, ACCRUALS, {"tangent_w", "response_w"})
    assert takes(found) == ["x", "v", "w", "trace_x", "tangent_v", "response_x"]
    assert torch.addcmul not in {node.target for node in found.graph.nodes}
    assert len(whole.graph.nodes) - len(found.graph.nodes) == 5  # two arguments, a tangent, an answer and its sum


def test_an_answer_that_is_left_out_leaves_its_tangent() -> None:
    found, _ = pruned(step(), ACCRUALS, {"response_w"})
    assert "tangent_w" in takes(found)
    assert torch.addcmul in {node.target for node in found.graph.nodes}


def test_the_whole_step_is_not_touched() -> None:
    whole = step()
    before = [(node.name, node.target, node.args) for node in whole.graph.nodes]
    pruned(whole, ACCRUALS, set(NAMES))
    assert [(node.name, node.target, node.args) for node in whole.graph.nodes] == before
