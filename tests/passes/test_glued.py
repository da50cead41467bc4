"""Layers of steps written by hand are glued back to the step, bit for bit."""

from __future__ import annotations

import pytest
import torch
from support.broken import edited, numbers_changed
from support.hand_built import STEPS, before, hand_built
from torch.utils import _pytree as pytree

from tracecompile.passes.glued import differs_from_step, glued, stand_ins
from tracecompile.passes.insert_input_traces import InsertInputTraces


@pytest.mark.parametrize("name", STEPS)
def test_glued_back_the_layers_are_the_step(name: str) -> None:
    program = before(InsertInputTraces, hand_built(name))
    glue, results = glued(program)
    assert differs_from_step(program, glue.graph, results) is None
    module = glue.module(results, "Glued")
    assert program.statics is not None
    values = [2 * torch.randn_like(node.meta["val"]) for node in program.step.graph.nodes if node.op == "placeholder"]
    statics = program.statics.graph(*(program.resolve(path) for path in program.statics.attributes))
    with torch.no_grad():
        found, wanted = pytree.tree_leaves(module(*values, *statics)), pytree.tree_leaves(program.step(*values))
    assert all(torch.equal(*pair) for pair in zip(found, wanted, strict=True))


def test_layers_of_another_step_are_not_the_step() -> None:
    program = before(InsertInputTraces, hand_built("one layer"))
    other = program.evolve(step=edited(program.step, numbers_changed(1.0, 2.0)))
    for node, was in zip(other.step.graph.nodes, program.step.graph.nodes, strict=True):
        node.meta.update(was.meta)
    glue, results = glued(program)
    assert "has become" in str(differs_from_step(other, glue.graph, results))


def test_arguments_stand_for_arguments_and_static_values() -> None:
    program = before(InsertInputTraces, hand_built("two layers"))
    glue, _ = glued(program)
    names = {one.name: other.name for one, other in stand_ins(program, glue.graph).items()}
    assert names == {name: name for name in ("x", "mem", "out", "leak", "leak_1")}
