"""Programs of a few nodes, written by hand."""

from __future__ import annotations

import operator
from collections.abc import Callable
from typing import Any

import torch
from torch import Tensor, fx, nn
from torch.utils import _pytree as pytree

from tracecompile.passes.base import Pass
from tracecompile.passes.pipeline import PIPELINE
from tracecompile.program import Carry, SequenceInput, Settings, StepOutput, StepProgram

BATCH, INPUTS, NEURONS = 5, 3, 4

Nodes = dict[str, fx.Node]
Build = Callable[[fx.Graph, Nodes], tuple[list[fx.Node], list[fx.Node]]]
"""(graph, its arguments by name) -> (outputs, next states)."""


class Triangle(torch.autograd.Function):
    """A spike with a triangular surrogate."""

    @staticmethod
    def forward(ctx: Any, v: Tensor) -> Tensor:
        ctx.save_for_backward(v)
        return (v > 0).to(v.dtype)

    @staticmethod
    def backward(ctx: Any, gradient: Tensor) -> Tensor:
        (v,) = ctx.saved_tensors
        return gradient * (1 - v.abs()).clamp_min(0)


class Spike(nn.Module):
    """The surrogate as the opaque leaf that capture makes of it."""

    def forward(self, v: Tensor) -> Tensor:
        return Triangle.apply(v)


class Root(nn.Module):
    """The modules that the steps call."""

    def __init__(self) -> None:
        super().__init__()
        torch.manual_seed(1)
        self.fc = nn.Linear(INPUTS, NEURONS)
        self.lateral = nn.Linear(NEURONS, NEURONS, bias=False)
        self.readout = nn.Linear(NEURONS, 2)
        self.norm = nn.BatchNorm1d(NEURONS)
        self.leak = nn.Parameter(torch.tensor(0.9))


# The steps.


def neuron(graph: fx.Graph, current: fx.Node, mem: fx.Node, detach: bool = False) -> tuple[fx.Node, fx.Node]:
    """A leaky neuron whose reset subtracts; returns (spikes, next membrane)."""
    charged = leaky(graph, current, mem)
    spikes = graph.call_module("spike", (graph.call_function(operator.sub, (charged, 1.0)),))
    gate = graph.call_method("detach", (spikes,)) if detach else spikes
    return spikes, graph.call_function(operator.sub, (charged, gate))


def leaky(graph: fx.Graph, current: fx.Node, mem: fx.Node) -> fx.Node:
    return graph.call_function(
        operator.add, (graph.call_function(operator.mul, (graph.get_attr("leak"), mem)), current)
    )


def one_layer(graph: fx.Graph, nodes: Nodes) -> tuple[list[fx.Node], list[fx.Node]]:
    """x -> fc -> neurons."""
    spikes, mem = neuron(graph, graph.call_module("fc", (nodes["x"],)), nodes["mem"])
    return [spikes], [mem]


def detached(graph: fx.Graph, nodes: Nodes) -> tuple[list[fx.Node], list[fx.Node]]:
    """The same, with a reset that the gradient does not see."""
    spikes, mem = neuron(graph, graph.call_module("fc", (nodes["x"],)), nodes["mem"], detach=True)
    return [spikes], [mem]


def without_reset(graph: fx.Graph, nodes: Nodes) -> tuple[list[fx.Node], list[fx.Node]]:
    """A membrane that spikes go out from and do not come back to."""
    mem = leaky(graph, graph.call_module("fc", (nodes["x"],)), nodes["mem"])
    return [graph.call_module("spike", (mem,))], [mem]


def lateral(graph: fx.Graph, nodes: Nodes) -> tuple[list[fx.Node], list[fx.Node]]:
    """Neurons that hear their own spikes one step later, and a head."""
    below, own = graph.call_module("fc", (nodes["x"],)), graph.call_module("lateral", (nodes["z"],))
    spikes, mem = neuron(graph, graph.call_function(operator.add, (below, own)), nodes["mem"])
    return [graph.call_module("readout", (spikes,))], [mem, spikes]


def two_currents(graph: fx.Graph, nodes: Nodes) -> tuple[list[fx.Node], list[fx.Node]]:
    """The same, with both currents added to the membrane one after the other."""
    charged = leaky(graph, graph.call_module("fc", (nodes["x"],)), nodes["mem"])
    charged = graph.call_function(operator.add, (charged, graph.call_module("lateral", (nodes["z"],))))
    spikes = graph.call_module("spike", (graph.call_function(operator.sub, (charged, 1.0)),))
    return [spikes], [graph.call_function(operator.sub, (charged, spikes)), spikes]


def two_layers(graph: fx.Graph, nodes: Nodes) -> tuple[list[fx.Node], list[fx.Node]]:
    """x -> fc -> neurons -> weights -> leaky readout."""
    spikes, mem = neuron(graph, graph.call_module("fc", (nodes["x"],)), nodes["mem"])
    out = leaky(graph, graph.call_module("lateral", (spikes,)), nodes["out"])
    return [out], [mem, out]


def mutual(graph: fx.Graph, nodes: Nodes) -> tuple[list[fx.Node], list[fx.Node]]:
    """Two layers of which the lower one hears the upper one a step later, and a head."""
    spikes, mem = neuron(graph, graph.call_module("lateral", (nodes["z"],)), nodes["mem"])
    upper, mem_2 = neuron(graph, graph.call_module("lateral", (spikes,)), nodes["mem_2"])
    return [graph.call_module("readout", (upper,))], [mem, mem_2, upper]


def delay_line(graph: fx.Graph, nodes: Nodes) -> tuple[list[fx.Node], list[fx.Node]]:
    """Neurons that are driven by the input of the step before."""
    spikes, mem = neuron(graph, graph.call_module("fc", (nodes["last"],)), nodes["mem"])
    return [spikes], [mem, nodes["x"]]


def normed(graph: fx.Graph, nodes: Nodes) -> tuple[list[fx.Node], list[fx.Node]]:
    """x -> fc -> batch normalisation -> neurons."""
    current = graph.call_module("norm", (graph.call_module("fc", (nodes["x"],)),))
    spikes, mem = neuron(graph, current, nodes["mem"])
    return [spikes], [mem]


def no_neurons(graph: fx.Graph, nodes: Nodes) -> tuple[list[fx.Node], list[fx.Node]]:
    """A product, and nothing that lasts."""
    return [graph.call_module("fc", (nodes["x"],))], []


STEPS: dict[str, tuple[Build, dict[str, int]]] = {
    "one layer": (one_layer, {"mem": NEURONS}),
    "detached": (detached, {"mem": NEURONS}),
    "without reset": (without_reset, {"mem": NEURONS}),
    "lateral": (lateral, {"mem": NEURONS, "z": NEURONS}),
    "two currents": (two_currents, {"mem": NEURONS, "z": NEURONS}),
    "two layers": (two_layers, {"mem": NEURONS, "out": NEURONS}),
    "mutual": (mutual, {"mem": NEURONS, "mem_2": NEURONS, "z": NEURONS}),
    "delay line": (delay_line, {"mem": NEURONS, "last": INPUTS}),
    "normed": (normed, {"mem": NEURONS}),
}
"""By name, with the sizes of the states."""


# The programs around them.


def hand_built(name: str, **settings: Any) -> StepProgram:
    """Returns the program of one of the steps as capture would leave it."""
    return program_of(*STEPS[name], **settings)


def program_of(build: Build, carries: dict[str, int], **settings: Any) -> StepProgram:
    """Wraps a step: one input of 3 channels, states of the given widths, a batch of 5."""
    root, leaves = Root(), {"spike": Spike()}
    graph = fx.Graph()
    nodes = {name: graph.placeholder(name) for name in ("x", *carries)}
    outputs, states = build(graph, nodes)
    graph.output((tuple(outputs), tuple(states)))
    owned = {
        str(node.target): leaves.get(str(node.target)) or getattr(root, str(node.target))
        for node in graph.nodes
        if node.op in ("call_module", "get_attr")
    }
    step = fx.GraphModule(owned, graph)
    values = [3 * torch.randn(BATCH, INPUTS), *(torch.randn(BATCH, width) for width in carries.values())]
    _record_values(step, values)
    return StepProgram(
        kind="sequence",
        root=root,
        leaves=leaves,
        prologue=_prologue(values),
        step=step,
        epilogue=_epilogue(len(outputs), list(carries)),
        inputs=(SequenceInput("x", 0),),
        invariants=(),
        carries=tuple(Carry(name, name) for name in carries),
        outputs=tuple(StepOutput(f"out_{i}", "stack") for i in range(len(outputs))),
        length=None,
        signature=pytree.tree_structure(((0,), {})),
        result=pytree.tree_structure([0] * len(outputs)),
        settings=Settings(**settings),
    )


def _prologue(values: list[Tensor]) -> fx.GraphModule:
    graph = fx.Graph()
    x = graph.placeholder("x")
    x.meta.update(val=values[0].unsqueeze(0), where=None)
    graph.output(((x,), (), tuple(graph.call_function(torch.zeros, tuple(value.shape)) for value in values[1:])))
    return fx.GraphModule({}, graph)


def _epilogue(outputs: int, carries: list[str]) -> fx.GraphModule:
    graph = fx.Graph()
    collected = [graph.placeholder(f"out_{i}") for i in range(outputs)]
    for name in carries:
        graph.placeholder(f"{name}_final")
    graph.output(tuple(collected))
    return fx.GraphModule({}, graph)


def _record_values(module: fx.GraphModule, values: list[Tensor]) -> None:
    class Recording(fx.Interpreter):
        def run_node(self, n: fx.Node) -> Any:
            value = super().run_node(n)
            n.meta.update(val=value, where=None)
            return value

    with torch.no_grad():
        Recording(module).run(*values)


def before(kind: type[Pass], program: StepProgram) -> StepProgram:
    """Runs the passes that come before one in the pipeline."""
    for step in PIPELINE:
        if type(step) is kind:
            break
        program = step(program)
    return program
