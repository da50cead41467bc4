"""What a step does to statistics of the model that no layer needs, as a graph of its own."""

from __future__ import annotations

from typing import Any

from torch import fx

from tracecompile.analysis.moving import Moving
from tracecompile.analysis.statics import static_nodes
from tracecompile.program import StepProgram, step_results
from tracecompile.units import Moves


def find_moves(program: StepProgram) -> Moves | None:
    """Returns what moves the statistics, but for those that layers compute themselves; None where nothing does."""
    moving = Moving(program)
    following = zip(program.carries, step_results(program.step)[1], strict=True)
    moved = {carry.placeholder: node for carry, node in following if node in moving.nodes}
    if not moved:
        return None
    static = static_nodes(program)
    taken = [node for node in moving.read if node in set().union(*(n.all_input_nodes for n in moving.nodes))]
    reads = tuple(node.name for node in taken if node.name not in moved and node not in static)
    statics = tuple(node.name for node in taken if node in static)
    graph, owned = fx.Graph(), dict[str, Any]()
    arguments = {name: graph.placeholder(name) for name in (*reads, *moved, *statics)}
    values = {node: arguments[node.name] for node in program.step.graph.nodes if node.name in arguments}
    for node in moving.nodes:
        values[node] = graph.node_copy(node, values.__getitem__)
        if node.op == "call_module":
            owned[str(node.target)] = program.resolve(str(node.target))
    graph.output(tuple(values[node] for node in moved.values()))
    return Moves(fx.GraphModule(owned, graph, "Moves"), reads, tuple(moved), statics)
