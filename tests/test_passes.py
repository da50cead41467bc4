"""Every pass alone, on steps written by hand, with its negative twin."""

from __future__ import annotations

import operator
from collections.abc import Callable
from dataclasses import replace
from typing import Any

import pytest
import torch
from torch import fx, nn
from torch.utils import _pytree as pytree

from tracecompile.errors import InvalidInput, NoSpikingLayer, PassError
from tracecompile.passes.base import Pass
from tracecompile.passes.emit_module import EmitModule
from tracecompile.passes.find_spiking_layers import FindSpikingLayers
from tracecompile.passes.insert_input_traces import InsertInputTraces
from tracecompile.passes.insert_rate_inversion import InsertRateInversion
from tracecompile.passes.partition_layers import PartitionLayers
from tracecompile.passes.pipeline import PIPELINE, run_pipeline
from tracecompile.passes.schedule_time import ScheduleTime
from tracecompile.program import Carry, SequenceInput, Settings, StepOutput, StepProgram


class Triangle(torch.autograd.Function):
    """A spike with a triangular surrogate."""

    @staticmethod
    def forward(ctx: Any, v: torch.Tensor) -> torch.Tensor:
        ctx.save_for_backward(v)
        return (v > 0).to(v.dtype)

    @staticmethod
    def backward(ctx: Any, gradient: torch.Tensor) -> torch.Tensor:
        (v,) = ctx.saved_tensors
        return gradient * (1 - v.abs()).clamp_min(0)


class Spike(nn.Module):
    """The surrogate as the opaque leaf that capture makes of it."""

    def forward(self, v: torch.Tensor) -> torch.Tensor:
        return Triangle.apply(v)


class Root(nn.Module):
    """Two products, one lateral."""

    def __init__(self) -> None:
        super().__init__()
        torch.manual_seed(1)
        self.fc = nn.Linear(3, 4)
        self.lateral = nn.Linear(4, 4, bias=False)
        self.readout = nn.Linear(4, 2)
        self.leak = nn.Parameter(torch.tensor(0.9))


Build = Callable[[fx.Graph, dict[str, fx.Node]], tuple[list[fx.Node], list[fx.Node]]]


def program_of(build: Build, carries: dict[str, int], **settings: Any) -> StepProgram:
    """Wraps a hand-built step: one input of 3 channels, states of the given widths, a batch of 5."""
    root, leaves = Root(), {"spike": Spike()}
    graph = fx.Graph()
    nodes = {"x": graph.placeholder("x")}
    values = [3 * torch.randn(5, 3)]
    for name, width in carries.items():
        nodes[name] = graph.placeholder(name)
        values.append(torch.randn(5, width))
    outputs, states = build(graph, nodes)
    graph.output((tuple(outputs), tuple(states)))
    module = fx.GraphModule(nn.ModuleDict(), fx.Graph())
    empty = fx.Graph()
    x = empty.placeholder("x")
    x.meta.update(val=values[0].unsqueeze(0), where=None)
    zeros = [empty.call_function(torch.zeros, (5, width)) for width in carries.values()]
    empty.output(((x,), (), tuple(zeros)))
    after = fx.Graph()
    collected = [after.placeholder(f"out_{i}") for i in range(len(outputs))]
    for name in carries:
        after.placeholder(f"{name}_final")
    after.output(tuple(collected))
    owned = {
        n.target: leaves.get(n.target) or _get(root, n.target)
        for n in graph.nodes
        if n.op in ("call_module", "get_attr")
    }
    module = fx.GraphModule(owned, graph)
    _record_values(module, values)
    return StepProgram(
        kind="sequence",
        root=root,
        leaves=leaves,
        prologue=fx.GraphModule({}, empty),
        step=module,
        epilogue=fx.GraphModule({}, after),
        inputs=(SequenceInput("x", 0),),
        invariants=(),
        carries=tuple(Carry(name, name) for name in carries),
        outputs=tuple(StepOutput(f"out_{i}", "stack") for i in range(len(outputs))),
        length=None,
        signature=pytree.tree_structure(((0,), {})),
        result=pytree.tree_structure([0] * len(outputs)),
        settings=Settings(**settings),
    )


def _get(root: nn.Module, target: str) -> Any:
    value: Any = root
    for part in target.split("."):
        value = getattr(value, part)
    return value


def _record_values(module: fx.GraphModule, values: list[torch.Tensor]) -> None:
    class Recording(fx.Interpreter):
        def run_node(self, n: fx.Node) -> Any:
            value = super().run_node(n)
            n.meta.update(val=value, where=None)
            return value

    with torch.no_grad():
        Recording(module).run(*values)


def neuron(graph: fx.Graph, current: fx.Node, mem: fx.Node) -> tuple[fx.Node, fx.Node]:
    """A leaky neuron with subtractive reset; returns (spikes, next membrane)."""
    leak = graph.get_attr("leak")
    charged = graph.call_function(operator.add, (graph.call_function(operator.mul, (leak, mem)), current))
    spikes = graph.call_module("spike", (graph.call_function(operator.sub, (charged, 1.0)),))
    return spikes, graph.call_function(operator.sub, (charged, spikes))


def one_layer(graph: fx.Graph, nodes: dict[str, fx.Node]) -> tuple[list[fx.Node], list[fx.Node]]:
    spikes, mem = neuron(graph, graph.call_module("fc", (nodes["x"],)), nodes["mem"])
    return [spikes], [mem]


def lateral_layer(graph: fx.Graph, nodes: dict[str, fx.Node]) -> tuple[list[fx.Node], list[fx.Node]]:
    below = graph.call_module("fc", (nodes["x"],))
    own = graph.call_module("lateral", (nodes["z"],))
    spikes, mem = neuron(graph, graph.call_function(operator.add, (below, own)), nodes["mem"])
    return [graph.call_module("readout", (spikes,))], [mem, spikes]


def stateless(graph: fx.Graph, nodes: dict[str, fx.Node]) -> tuple[list[fx.Node], list[fx.Node]]:
    return [graph.call_module("fc", (nodes["x"],))], []


def after(program: StepProgram, *passes: Pass) -> StepProgram:
    for step in passes:
        program = step(program)
    return program


def test_finds_the_core_of_a_neuron() -> None:
    found = FindSpikingLayers()(program_of(one_layer, {"mem": 4}))
    (core,) = found.cores
    assert core.states == ("mem",)
    assert core.spikes == ("spike",)
    assert core.nodes == ("mul", "add", "sub", "spike", "sub_1")


def test_refuses_a_step_without_neurons() -> None:
    with pytest.raises(NoSpikingLayer, match="no state"):
        FindSpikingLayers()(program_of(stateless, {}))


def test_lateral_product_is_not_part_of_the_core() -> None:
    (core,) = FindSpikingLayers()(program_of(lateral_layer, {"mem": 4, "z": 4})).cores
    assert core.states == ("mem",)
    assert "lateral" not in core.nodes


def test_partition_puts_every_node_into_one_layer() -> None:
    found = after(program_of(lateral_layer, {"mem": 4, "z": 4}), FindSpikingLayers(), PartitionLayers())
    spiking, head = found.layers
    assert [(s.value, s.origin, s.delay) for s in spiking.sources] == [("x", "x", 0), ("z", "spike", 1)]
    assert (spiking.kind, head.kind) == ("spiking", "junction")
    assert head.sources[0].origin == "spike"
    assert spiking.reset == "in graph"


def test_partition_needs_cores() -> None:
    with pytest.raises(PassError, match="partition_layers cannot run: no core"):
        PartitionLayers()(program_of(one_layer, {"mem": 4}))


def test_one_trace_per_source_and_decay() -> None:
    found = after(
        program_of(lateral_layer, {"mem": 4, "z": 4}), FindSpikingLayers(), PartitionLayers(), InsertInputTraces()
    )
    assert [(t.value, t.decay) for t in found.traces] == [("x", None), ("z", None), ("spike", None)]


def test_decay_of_an_unknown_layer_is_refused() -> None:
    with pytest.raises(InvalidInput, match="no_such_layer"):
        after(
            program_of(one_layer, {"mem": 4}, decay={"no_such_layer": 0.9}),
            FindSpikingLayers(),
            PartitionLayers(),
            InsertInputTraces(),
        )


def test_derivatives_are_those_of_autograd() -> None:
    program = after(
        program_of(one_layer, {"mem": 4}),
        FindSpikingLayers(),
        PartitionLayers(),
        InsertInputTraces(),
        InsertRateInversion(),
    )
    (layer,) = program.layers
    current, mem = torch.randn(5, 4, requires_grad=True), torch.randn(5, 4, requires_grad=True)
    leak = torch.tensor(0.9, requires_grad=True).expand(5, 4)
    assert layer.core is not None
    (spikes,), (following,) = layer.core(current, mem, leak)
    nothing = [torch.zeros(()) for _ in layer.response.accruals]
    *_, derivatives = layer.response.graph(current.detach(), mem.detach(), leak.detach(), *nothing)
    assert 0 < spikes.sum() < spikes.numel()
    for result, value in (("spike", spikes), ("next:0", following)):
        for variable, leaf in (("fc", current), ("mem", mem), (layer.core_statics[0], leak)):
            (expected,) = torch.autograd.grad(value, leaf, torch.ones_like(value), retain_graph=True)
            row = layer.response.rows[result, variable]
            found = derivatives[row] if isinstance(row, int) else torch.full_like(expected, row)
            torch.testing.assert_close(found.expand_as(expected), expected)


def test_bptt_needs_no_derivatives() -> None:
    program = after(
        program_of(one_layer, {"mem": 4}, rule="bptt"),
        FindSpikingLayers(),
        PartitionLayers(),
        InsertInputTraces(),
        InsertRateInversion(),
    )
    assert all(layer.response is None for layer in program.layers)


def test_schedule_makes_a_block_of_what_feeds_itself() -> None:
    program = run_pipeline(program_of(lateral_layer, {"mem": 4, "z": 4}))[0]
    assert [(block.layers, block.recurrent) for block in program.blocks] == [((0,), True), ((1,), False)]
    program = run_pipeline(program_of(one_layer, {"mem": 4}))[0]
    assert [(block.layers, block.recurrent) for block in program.blocks] == [((0,), False)]


@pytest.mark.parametrize(("build", "carries"), [(one_layer, {"mem": 4}), (lateral_layer, {"mem": 4, "z": 4})])
def test_gluing_the_layers_back_gives_the_step(build: Build, carries: dict[str, int]) -> None:
    program = run_pipeline(program_of(build, carries))[0]
    assert program.emitted is not None
    assert program.statics is not None
    values = [torch.randn(7, 3) * 3, *(torch.randn(7, width) for width in carries.values())]
    statics = program.statics.graph(*(program.resolve(path) for path in program.statics.attributes))
    with torch.no_grad():
        expected = pytree.tree_leaves(program.step(*values))
        plain = pytree.tree_leaves(program.emitted.plain(*values, *statics))
        nothing = [torch.zeros(()) for _ in program.emitted.accruals]
        traced = pytree.tree_leaves(program.emitted.traced(*values, *statics, *nothing)[:2])
    assert all(torch.equal(a, b) for a, b in zip(expected, plain, strict=True))
    assert all(torch.equal(a, b) for a, b in zip(expected, traced, strict=True))


def test_stages_are_in_the_order_of_the_pipeline() -> None:
    _, stages = run_pipeline(program_of(one_layer, {"mem": 4}))
    assert [name for name, _ in stages.texts] == ["capture", *(step.name for step in PIPELINE)]
    assert "model.fc(x)" in stages.texts[0][1]


def test_a_broken_pass_is_caught_by_name() -> None:
    class DropLayer(PartitionLayers):
        """Forgets the last layer."""

        name = "drop_layer"

        def run(self, program: StepProgram) -> StepProgram:
            done = super().run(program)
            return done.evolve(layers=done.layers[:-1])

    class SwapStates(Pass):
        """Names states that the step does not have."""

        name = "swap_states"

        def run(self, program: StepProgram) -> StepProgram:
            return program.evolve(carries=tuple(replace(c, placeholder="nowhere") for c in program.carries))

    program = FindSpikingLayers()(program_of(lateral_layer, {"mem": 4, "z": 4}))
    with pytest.raises(PassError, match="drop_layer"):
        DropLayer()(program)
    with pytest.raises(PassError, match="swap_states left a malformed program"):
        SwapStates()(program)


def test_emitting_needs_a_schedule() -> None:
    with pytest.raises(PassError, match="emit_module cannot run"):
        EmitModule()(FindSpikingLayers()(program_of(one_layer, {"mem": 4})))
    with pytest.raises(PassError, match="schedule_time cannot run"):
        ScheduleTime()(program_of(one_layer, {"mem": 4}))
