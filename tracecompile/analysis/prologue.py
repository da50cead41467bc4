"""Keeps a prologue from doing anything but making initial values."""

from __future__ import annotations

from torch import fx, nn

from tracecompile.analysis.linearity import operation_name
from tracecompile.analysis.norms import NORMS, batch_norm_arguments
from tracecompile.program import StepProgram, is_tensor

_SHAPE_ONLY = frozenset(
    "zeros_like ones_like full_like empty_like new_zeros new_ones new_full size shape getattr dim numel".split()
)


def without_side_effects(program: StepProgram) -> fx.GraphModule:
    """Returns the prologue without the normalisations and dropouts whose value nobody reads.

    A model may make a state as zeros like a current, ``torch.zeros_like(norm(fc(x[0])))``; computing that current again
    would move the running statistics and draw random numbers a second time. These layers keep the shape of what they
    take, so where only the shape is wanted, their input serves. Nothing is learned through a shape: what is computed
    for its sake leaves no graph behind.
    """
    by_value = _read_by_value(program.prologue.graph)
    graph, values = fx.Graph(), dict[fx.Node, fx.Node]()
    for node in program.prologue.graph.nodes:
        if node not in by_value and _has_side_effects(program, node):
            values[node] = values[node.all_input_nodes[0]]
        else:
            values[node] = graph.node_copy(node, values.__getitem__)
            if node not in by_value and _takes_parameters(program, node):
                values[node] = graph.call_method("detach", (values[node],))
    return program.graph_module(graph, "Prologue")


def _has_side_effects(program: StepProgram, node: fx.Node) -> bool:
    if node.op != "call_module":
        drops = node.op == "call_function" and operation_name(program, node) == "dropout"
        return drops or batch_norm_arguments(node) is not None
    return isinstance(program.resolve(str(node.target)), (*NORMS, nn.modules.dropout._DropoutNd))


def _takes_parameters(program: StepProgram, node: fx.Node) -> bool:
    if node.op == "call_module":
        return any(True for _ in program.resolve(str(node.target)).parameters())
    own = (source for source in node.all_input_nodes if source.op == "get_attr")
    return is_tensor(node) and any(isinstance(program.resolve(str(source.target)), nn.Parameter) for source in own)


def _read_by_value(graph: fx.Graph) -> set[fx.Node]:
    found: set[fx.Node] = set()
    for node in reversed(graph.nodes):
        if node.op == "output" or node in found:
            name = node.target if isinstance(node.target, str) else getattr(node.target, "__name__", "")
            if name == "expand_as":
                found.update(source for source in node.args[:1] if isinstance(source, fx.Node))
            elif node.op == "output" or name not in _SHAPE_ONLY:
                found.update(node.all_input_nodes)
    return found
