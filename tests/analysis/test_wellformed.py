"""A program is well formed, or it is said in what it is not."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import replace

import pytest
import torch
from support.broken import changed_by
from support.hand_built import STEPS, before, hand_built
from torch import fx

from tracecompile.analysis.wellformed import check_well_formed
from tracecompile.layers import Layer
from tracecompile.passes.insert_input_traces import InsertInputTraces
from tracecompile.passes.pipeline import run_pipeline
from tracecompile.program import StepProgram


@pytest.mark.parametrize("name", STEPS)
def test_a_program_is_well_formed_before_and_after_all_passes(name: str) -> None:
    program = hand_built(name)
    assert check_well_formed(program) is None
    assert check_well_formed(run_pipeline(program)[0]) is None


def foreign_argument(program: StepProgram) -> StepProgram:
    """Reads a node of another graph."""
    other = fx.Graph()
    node = next(each for each in program.step.graph.nodes if each.op == "call_function")
    node.args = (other.placeholder("x"), *node.args[1:])
    return program


def without_example(program: StepProgram) -> StepProgram:
    del next(each for each in program.step.graph.nodes if each.name == "fc").meta["val"]
    return program


def returns_less(program: StepProgram) -> StepProgram:
    output = next(node for node in reversed(program.step.graph.nodes) if node.op == "output")
    output.args = ((output.args[0][0], ()),)
    return program


def takes_more(program: StepProgram) -> StepProgram:
    first = next(iter(program.step.graph.nodes))
    with program.step.graph.inserting_before(first):
        program.step.graph.placeholder("more").meta["val"] = torch.zeros(1)
    return program


def of_other_nodes(layer: Layer) -> Layer:
    return replace(layer, nodes=(*layer.nodes, "elsewhere"))


def from_nowhere(layer: Layer) -> Layer:
    return replace(layer, sources=(replace(layer.sources[0], origin="nowhere"),))


FAULTS: dict[str, tuple[Callable[[StepProgram], StepProgram], str]] = {
    "a graph that torch.fx finds fault with": (foreign_argument, "step: "),
    "a node without a value": (without_example, "node fc of the step has no example value"),
    "a step that returns less": (returns_less, "the step returns 1 outputs and 0 states"),
    "a step that takes more": (takes_more, "the step takes ['more', 'x', 'mem'], the program says ['x', 'mem']"),
    "a layer of other nodes": (
        changed_by(0, of_other_nodes),
        "layer mem names nodes that the step lacks: ['elsewhere']",
    ),
    "a layer that reads what nobody makes": (changed_by(0, from_nowhere), "layer mem reads what no layer makes: ['x']"),
}


@pytest.mark.parametrize("fault", FAULTS)
def test_what_is_wrong_is_said(fault: str) -> None:
    damage, said = FAULTS[fault]
    program = before(InsertInputTraces, hand_built("one layer"))
    assert check_well_formed(program) is None
    assert str(check_well_formed(damage(program))).startswith(said)
