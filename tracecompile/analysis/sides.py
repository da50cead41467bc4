"""Cycles of a step that something else crosses within the step.

A membrane whose own spikes come back to it within the same step, through weights or through a sum over the neurons, is
no elementwise recurrence: some of its nodes have to be computed before the crossing and some after it. The side of a
node is the number of crossings before it. What lies between a state and the far side without a spike is computed on
both, so that the state keeps its own recurrence there; a spike is read across, like that of any other layer.
"""

from __future__ import annotations

from collections.abc import Callable

from torch import fx

from tracecompile.analysis.graph_view import StepView
from tracecompile.program import StepProgram


def with_both_sides(program: StepProgram, may_join: Callable[[fx.Node], bool], spikes: set[fx.Node]) -> StepProgram:
    """Returns a program in which no value but a spike is read on another side than where it is computed.

    Args:
        program: As captured.
        may_join: Tells which nodes of the step can be part of a cycle.
        spikes: Those of them that are read across.
    """
    view = StepView(program)
    side: dict[fx.Node, int] = {}
    for group in view.cycles(may_join):
        found = view.sides(group)
        side.update({node: found[node] for node in group if node in found} if any(found.values()) else {})
    again: dict[fx.Node, set[int]] = {node: set() for node in side}
    for node in reversed(view.nodes):
        for place in {side[node], *again[node]} if node in side else ():
            for source in node.all_input_nodes:
                if source in side and source not in spikes and side[source] < place:
                    again[source].add(place)
    return _computed_again(program, side, again) if any(again.values()) else program


def _computed_again(program: StepProgram, side: dict[fx.Node, int], again: dict[fx.Node, set[int]]) -> StepProgram:
    graph = fx.Graph()
    copies: dict[tuple[fx.Node, int | None], fx.Node] = {}

    def copy(node: fx.Node, place: int | None) -> None:
        def source(read: fx.Node) -> fx.Node:
            return copies[read, place if place in again.get(read, ()) else None]

        made = graph.node_copy(node, source)
        made.meta = dict(node.meta)
        copies[node, None if place == side.get(node) else place] = made

    for node in program.step.graph.nodes:
        for place in (side.get(node), *sorted(again.get(node, ()))):
            copy(node, place)
    return program.evolve(step=program.graph_module(graph, "Step"))
