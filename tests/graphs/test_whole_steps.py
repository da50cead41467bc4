"""Values of a neuron's step that is kept whole come of one call of it."""

from __future__ import annotations

import operator

import pytest
import torch
from torch import Tensor, fx, nn

from tracecompile.graphs.whole_steps import joined, value_of_step
from tracecompile.neuron_step import NeuronStep, OpaqueStep
from tracecompile.passes.compared import difference, returned_by


class Neuron(nn.Module):
    """A neuron of SpikingJelly's protocol, which counts its calls."""

    def __init__(self) -> None:
        super().__init__()
        self._memories, self._memories_rv = {"v": 0.0}, {"v": 0.0}
        self.calls = 0

    def single_step_functional_forward(
        self, inputs: tuple[Tensor, ...], states: tuple[Tensor, ...]
    ) -> tuple[tuple[Tensor, ...], tuple[Tensor, ...]]:
        self.calls += 1
        v = 0.5 * states[0] + inputs[0]
        spike = (v > 1).to(v)
        return (spike,), (v - spike,)


def step_graph(step: OpaqueStep, other: OpaqueStep) -> fx.GraphModule:
    """Two layers; the second one is called with what the first one makes, and once more with its own spikes."""
    graph, owned = fx.Graph(), dict[str, nn.Module]()
    x, v, w = (graph.placeholder(name) for name in ("x", "v", "w"))

    def value(name: str, of: OpaqueStep, position: int, *args: fx.Node) -> fx.Node:
        owned[name] = NeuronStep(of, position, 2)
        return graph.call_module(name, args)

    spike, after = value("a__spike", step, 0, x, v), value("a__v", step, 1, x, v)
    above, beyond = value("b__spike", other, 0, spike, w), value("b__v", other, 1, spike, w)
    graph.output((above, value("b__spike", other, 0, above, w), after, beyond))
    return fx.GraphModule(owned, graph, "Step")


def test_a_step_is_called_once_for_all_its_values() -> None:
    steps = OpaqueStep(Neuron()), OpaqueStep(Neuron())
    given = 3 * torch.rand(2, 4), torch.rand(2, 4), torch.rand(2, 4)
    module = step_graph(*steps)
    expected = module(*given)
    once = joined(module)
    before = [step.neuron.calls for step in steps]
    found = once(*given)
    assert [step.neuron.calls - each for step, each in zip(steps, before, strict=True)] == [1, 2]
    assert any(value.any() for value in expected)
    assert all(torch.equal(one, other) for one, other in zip(found, expected, strict=True))


def test_a_graph_without_such_steps_is_left_as_it_is() -> None:
    graph = fx.Graph()
    graph.output(graph.call_function(torch.relu, (graph.placeholder("x"),)))
    module = fx.GraphModule({}, graph)
    assert joined(module) is module


def compared(one: fx.GraphModule, other: fx.GraphModule) -> str | None:
    known = dict(zip(list(one.graph.nodes)[:3], list(other.graph.nodes)[:3], strict=True))
    return difference(zip(returned_by(one), returned_by(other), strict=True), known)


def test_passes_take_both_for_the_same() -> None:
    module = step_graph(OpaqueStep(Neuron()), OpaqueStep(Neuron()))
    assert compared(module, joined(module)) is None


@pytest.mark.parametrize("fault", ["position", "step"])
def test_passes_see_another_value_or_another_step(fault: str) -> None:
    steps = OpaqueStep(Neuron()), OpaqueStep(Neuron())
    module = step_graph(*steps)
    wrong = joined(module)
    picked = next(node for node in wrong.graph.nodes if node.target is operator.getitem)
    if fault == "position":
        picked.args = (picked.args[0], 1 - int(str(picked.args[1])))
    else:
        wrong.a__step = steps[1]
    assert compared(module, wrong) is not None


def test_other_picked_values_are_none_of_a_step() -> None:
    graph = fx.Graph()
    node = graph.call_function(operator.getitem, (graph.placeholder("x"), 0))
    graph.output(node)
    fx.GraphModule({}, graph)
    assert value_of_step(node) is None
