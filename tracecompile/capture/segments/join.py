"""Puts the programs of all levels together: those before the last one become operations of its prologue."""

from __future__ import annotations

import operator
from collections.abc import Sequence
from typing import Any

from torch import fx, nn
from torch.utils import _pytree as pytree

from tracecompile.capture.segments.piece import Key
from tracecompile.capture.segments.piece import Segment as Division
from tracecompile.capture.tracing.build import graph_module
from tracecompile.capture.tracing.tape import Tape
from tracecompile.program import StepProgram
from tracecompile.segment import SEGMENT, Segment


def join(
    tape: Tape, divisions: Sequence[Division], programs: Sequence[StepProgram], signature: pytree.TreeSpec
) -> StepProgram:
    """Returns the program of the whole model.

    Args:
        tape: Of the whole model.
        divisions: Of the tape.
        programs: One for each.
        signature: Of the model's call.
    """
    (*before, last), (*_, end) = programs, divisions
    graph = fx.Graph()
    values: dict[Key, fx.Node] = {}
    leaves: dict[str, nn.Module] = dict(last.leaves)
    for node in tape.inputs:
        if node is not None:
            values[node] = graph.placeholder(node.name)
            values[node].meta.update(val=node.meta["val"], where=node.meta.get("where"))
    for number, (program, division) in enumerate(zip(before, divisions, strict=False)):
        name = f"{SEGMENT}{number}"
        leaves[name] = Segment(program)
        call = graph.call_module(name, tuple(values[key] for key in division.takes))
        results = division.tape.result
        where = next((node.meta.get("where") for node in program.step.graph.nodes if node.meta.get("where")), None)
        call.meta.update(val=tuple(node.meta["val"] for node in results), where=where)
        for place, (key, node) in enumerate(zip(division.gives, results, strict=True)):
            values[key] = graph.call_function(operator.getitem, (call, place))
            values[key].meta.update(val=node.meta["val"], where=where)
    _copy(last.prologue.graph, graph, [values[key] for key in end.takes])
    return last.evolve(
        prologue=graph_module(graph, last.root, leaves, "Prologue"),
        leaves=leaves,
        signature=signature,
        pinned=tape.compared_inputs(),
        reads_mode=True,
        stepwise=tuple(dict.fromkeys(name for program in programs for name in program.stepwise)),
        notes=tuple(dict.fromkeys(note for program in programs for note in program.notes)),
    )


def _copy(prologue: fx.Graph, graph: fx.Graph, given: Sequence[fx.Node]) -> None:
    """Writes a prologue behind what its arguments are."""
    arguments = iter(given)
    values: dict[fx.Node, Any] = {}
    for node in prologue.nodes:
        values[node] = next(arguments) if node.op == "placeholder" else graph.node_copy(node, values.__getitem__)
