"""Calls that are over after one step."""

from __future__ import annotations

from dataclasses import replace

from torch import fx

from tracecompile.capture.loops.fixed import FEWEST_STEPS
from tracecompile.capture.loops.places import visit_counts
from tracecompile.capture.tracing.build import is_random
from tracecompile.capture.tracing.tape import Tape
from tracecompile.operations import Fact, has
from tracecompile.program import StepProgram


def starts_a_state(tape: Tape) -> bool:
    """Tells whether a call makes a state of its own, or leaves one, and loops over nothing."""
    starts = any(has(node, Fact.FILLS) or is_random(node) for node in tape.graph.nodes)
    loops = max(visit_counts(tape).values(), default=0) >= FEWEST_STEPS
    return (starts or bool(tape.written)) and not loops


def as_sequence_of_one(program: StepProgram) -> StepProgram:
    """Makes a sequence of one step of a step without states: no call of it has anything to do with the next."""
    graph, values = fx.Graph(), dict[fx.Node, fx.Node]()
    for node in program.prologue.graph.nodes:
        if node.op == "output":
            inputs, invariants, states = fx.map_arg(node.args[0], values.__getitem__)
            sequences = []
            for one in inputs:
                made = graph.call_method("unsqueeze", (one, 0))
                made.meta.update(val=one.meta["val"].unsqueeze(0), where=one.meta.get("where"))
                sequences.append(made)
            graph.output((tuple(sequences), invariants, states)).meta.update(where=None)
        else:
            values[node] = graph.node_copy(node, values.__getitem__)
    return program.evolve(
        kind="sequence",
        prologue=program.graph_module(graph, "Prologue"),
        inputs=tuple(replace(each, dim=0) for each in program.inputs),
        outputs=tuple(replace(each, collect="last") for each in program.outputs),
        length=1,
    )
