"""Draws of steps written by hand, and what a broken pass would draw."""

from __future__ import annotations

import operator
from dataclasses import replace
from typing import Any

import pytest
import torch
import torch.nn.functional as F
from support.broken import edited, numbers_changed, require_caught
from support.hand_built import BATCH, NEURONS, STEPS, Nodes, hand_built, neuron, program_of
from torch import fx

from tracecompile.errors import UnsupportedOperation
from tracecompile.layers import NO_DRAWS
from tracecompile.passes.compared import returned_by, taken_by
from tracecompile.passes.draw_ahead import DrawAhead
from tracecompile.passes.find_spiking_layers import FindSpikingLayers
from tracecompile.passes.partition_layers import PartitionLayers
from tracecompile.passes.pipeline import run_pipeline
from tracecompile.program import StepProgram


def drawing(graph: fx.Graph, function: Any, *args: Any) -> fx.Node:
    node = graph.call_function(function, args)
    node.meta["draws"] = True
    return node


def chance(graph: fx.Graph, nodes: Nodes) -> tuple[list[fx.Node], list[fx.Node]]:
    """x -> dropout -> fc -> noise, drawn first -> neurons -> dropout, which the user reads."""
    noise = drawing(graph, torch.randn_like, nodes["mem"])
    current = graph.call_module("fc", (drawing(graph, F.dropout, nodes["x"], 0.5, True),))
    spikes, mem = neuron(graph, graph.call_function(operator.add, (current, noise)), nodes["mem"])
    return [drawing(graph, F.dropout, spikes, 0.25, True)], [mem]


def from_a_state(graph: fx.Graph, nodes: Nodes) -> tuple[list[fx.Node], list[fx.Node]]:
    """Neurons that are driven by what their membrane decides."""
    spikes, mem = neuron(
        graph, drawing(graph, torch.poisson, graph.call_function(torch.abs, (nodes["mem"],))), nodes["mem"]
    )
    return [spikes], [mem]


def captured(**settings: Any) -> StepProgram:
    program = program_of(chance, {"mem": NEURONS}, **settings)
    for node in program.step.graph.nodes:
        node.meta["draws"] = node.target in (torch.randn_like, F.dropout)
    return program


def test_draws_become_arguments_in_the_order_of_the_model() -> None:
    before = captured()
    after = DrawAhead()(before)
    assert after.draws.graph is not None
    assert taken_by(after.draws.graph) == ["x", "mem"]
    assert taken_by(after.step) == ["x", *after.draws.names, "mem"]
    assert [node.target for node in returned_by(after.draws.graph)] == [torch.randn_like, F.dropout, F.dropout]
    products = [node.args for node in after.step.graph.nodes if node.target is operator.mul]
    masked = [str(one) for one, other in products if str(other).endswith("mask")]
    assert masked == ["x", "spike"]
    x, mem = torch.randn(BATCH, 3), torch.randn(BATCH, NEURONS)
    torch.manual_seed(0)
    wanted = before.step(x, mem)
    torch.manual_seed(0)
    found = after.step(x, *after.draws.graph(x, mem), mem)
    assert all(torch.equal(one[0], other[0]) for one, other in zip(wanted, found, strict=True))


def test_what_is_drawn_runs_no_neuron() -> None:
    after = DrawAhead()(captured())
    assert after.draws.graph is not None
    called = [node.target for node in after.draws.graph.graph.nodes if node.op == "call_module"]
    assert called == ["fc"]  # the mask on the spikes is of the shape of what charges the membrane


def test_a_mask_is_of_the_core_that_it_masks_and_a_masked_input_is_a_layer() -> None:
    after = PartitionLayers()(FindSpikingLayers()(DrawAhead()(captured())))
    masked, neurons = after.layers
    assert (masked.kind, masked.states, [source.value for source in masked.sources]) == ("stateless", (), ["x"])
    assert neurons.states == ("mem",)
    assert set(after.draws.names) == {*masked.core_statics, *neurons.core_statics} - {"leak"}
    assert [source.value for source in neurons.sources] == list(masked.outputs)


@pytest.mark.parametrize("name", STEPS)
def test_a_step_that_draws_nothing_stays_as_it_is(name: str) -> None:
    program = hand_built(name)
    assert DrawAhead()(program) is program


@pytest.mark.parametrize("rule", ["measured", "bptt"])
def test_every_pass_keeps_its_promises_with_draws(rule: str) -> None:
    program, _ = run_pipeline(captured(rule=rule))
    assert program.emitted is not None
    assert len(program.draws.names) == 3


def test_the_analytic_rule_refuses_draws() -> None:
    with pytest.raises(UnsupportedOperation, match="at every time step"):
        DrawAhead()(captured(rule="analytic"))


def test_a_draw_that_a_state_decides_is_refused_or_left_to_autograd() -> None:
    for rule in ("measured", "bptt"):
        program = program_of(from_a_state, {"mem": NEURONS}, rule=rule)
        next(node for node in program.step.graph.nodes if node.target is torch.poisson).meta["draws"] = True
        if rule == "bptt":
            assert DrawAhead()(program) is program
            continue
        with pytest.raises(UnsupportedOperation, match=r"depends on values that the step computes \(mem\)"):
            DrawAhead()(program)


# A broken pass is caught.


def in_another_order(program: StepProgram) -> StepProgram:
    assert program.draws.graph is not None

    def edit(graph: fx.Graph) -> None:
        output = next(node for node in reversed(graph.nodes) if node.op == "output")
        output.args = (output.args[0][::-1],)

    return program.evolve(draws=replace(program.draws, graph=edited(program.draws.graph, edit)))


def with_another_share(program: StepProgram) -> StepProgram:
    assert program.draws.graph is not None
    graph = edited(program.draws.graph, numbers_changed(0.5, 0.9))
    return program.evolve(draws=replace(program.draws, graph=graph))


def with_another_step(program: StepProgram) -> StepProgram:
    return program.evolve(step=edited(program.step, numbers_changed(1.0, 2.0), spike=program.leaves["spike"]))


def without_draws(program: StepProgram) -> StepProgram:
    return program.evolve(step=captured().step, draws=NO_DRAWS)


@pytest.mark.parametrize(
    ("damage", "said"),
    [
        (in_another_order, "not drawn in this order"),
        (with_another_share, "has become"),
        (with_another_step, "the step is not that of the model"),
        (without_draws, "nothing is drawn"),
    ],
)
def test_a_broken_pass_is_caught(damage: Any, said: str) -> None:
    require_caught(DrawAhead, captured(), damage, said)
