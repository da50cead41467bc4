"""Keeps a prologue from doing anything but making initial values."""

from __future__ import annotations

from torch import fx, nn

from tracecompile.analysis.linearity import NORMS, operation_name
from tracecompile.program import StepProgram

_SHAPE_ONLY = frozenset(
    "zeros_like ones_like full_like empty_like new_zeros new_ones new_full size shape getattr dim numel".split()
)


def without_side_effects(program: StepProgram) -> fx.GraphModule:
    """Returns the prologue without the normalisations and dropouts whose value nobody reads.

    A model may make a state as zeros like a current, ``torch.zeros_like(norm(fc(x[0])))``; computing that current again
    would move the running statistics and draw random numbers a second time. These layers keep the shape of what they
    take, so where only the shape is wanted, their input serves.
    """
    by_value = _read_by_value(program.prologue.graph)
    graph, values = fx.Graph(), dict[fx.Node, fx.Node]()
    for node in program.prologue.graph.nodes:
        if node not in by_value and _has_side_effects(program, node):
            values[node] = values[node.all_input_nodes[0]]
        else:
            values[node] = graph.node_copy(node, values.__getitem__)
    return program.graph_module(graph, "Prologue")


def _has_side_effects(program: StepProgram, node: fx.Node) -> bool:
    if node.op != "call_module":
        return operation_name(program, node) == "dropout" if node.op == "call_function" else False
    return isinstance(program.resolve(str(node.target)), (*NORMS, nn.modules.dropout._DropoutNd))


def _read_by_value(graph: fx.Graph) -> set[fx.Node]:
    found: set[fx.Node] = set()
    for node in reversed(graph.nodes):
        if node.op == "output" or node in found:
            name = node.target if isinstance(node.target, str) else getattr(node.target, "__name__", "")
            if node.op == "output" or name not in _SHAPE_ONLY:
                found.update(node.all_input_nodes)
    return found
