"""A step that shows values of its nodes, for whoever looks on."""

from __future__ import annotations

from collections.abc import Iterable

from torch import fx

from tracecompile.program import StepProgram


def shown(program: StepProgram, names: Iterable[str]) -> fx.GraphModule:
    """Returns (*inputs, *drawn, *invariants, *states) -> values of some nodes of the step, and no more."""
    graph, values = fx.Graph(), dict[str, fx.Node]()
    for node in program.step.graph.nodes:
        if node.op != "output":
            values[node.name] = graph.node_copy(node, lambda source: values[source.name])
    graph.output(tuple(values[name] for name in names))
    module = program.graph_module(graph, "Shown")
    module.graph.eliminate_dead_code()
    module.recompile()
    return module
