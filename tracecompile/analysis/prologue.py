"""Keeps a prologue from doing anything but making initial values."""

from __future__ import annotations

import torch
from torch import fx, nn

from tracecompile.analysis.norms import batch_norm_arguments
from tracecompile.operations import SHAPE_ONLY, Fact, has, operation_of
from tracecompile.program import AHEAD, StepProgram, example_value, is_tensor


def without_side_effects(program: StepProgram) -> fx.GraphModule:
    """Returns the prologue without the normalisations, dropouts and draws whose value nobody reads.

    A model may make a state as zeros like a current, ``torch.zeros_like(norm(fc(x[0])))``; computing that current again
    would move the running statistics and draw random numbers a second time. These layers keep the shape of what they
    take, so where only the shape is wanted, their input serves, and zeros for what is drawn like nothing; but what no
    step runs, the model itself has run before the loop. Nothing is learned through a shape: what is computed for its
    sake leaves no graph behind.
    """
    by_value = _read_by_value(program.prologue.graph)
    graph, values = fx.Graph(), dict[fx.Node, fx.Node]()
    for node in program.prologue.graph.nodes:
        if node not in by_value and node.meta.get(AHEAD) and _has_side_effects(program, node):
            values[node] = values[node.all_input_nodes[0]]
        elif node not in by_value and node.meta.get(AHEAD) and node.meta.get("draws") and is_tensor(node):
            values[node] = _undrawn(graph, node, values)
        else:
            values[node] = graph.node_copy(node, values.__getitem__)
            if node not in by_value and is_tensor(node) and _takes_parameters(program, node):
                values[node] = graph.call_method("detach", (values[node],))
    return program.graph_module(graph, "Prologue")


def _has_side_effects(program: StepProgram, node: fx.Node) -> bool:
    module = program.resolve(str(node.target)) if node.op == "call_module" else None
    if has(node, Fact.BATCH_STATISTICS, module):
        return module is not None or batch_norm_arguments(node) is not None
    return has(node, Fact.DROPS, module)


def _undrawn(graph: fx.Graph, node: fx.Node, values: dict[fx.Node, fx.Node]) -> fx.Node:
    """Returns what has the shape and type of a draw, without drawing it; the draw where nothing is known to have."""
    drawn = example_value(node)
    for source in node.all_input_nodes:
        like = example_value(source)
        if is_tensor(source) and (like.shape, like.dtype) == (drawn.shape, drawn.dtype):
            return values[source]
    name = operation_of(node).name
    if node.op != "call_function" or name not in ("rand", "randn", "normal"):
        return graph.node_copy(node, values.__getitem__)
    sizes, options = fx.map_arg((node.args, node.kwargs), values.__getitem__)
    if name == "normal":  # behind its mean and standard deviation
        sizes = sizes[2:]
    options = {key: value for key, value in options.items() if key not in ("generator", "mean", "std")}
    zeros = graph.call_function(torch.zeros, sizes, options)
    zeros.meta = {**node.meta, "draws": False}
    return zeros


def _takes_parameters(program: StepProgram, node: fx.Node) -> bool:
    if operation_of(node).name == "getitem" and not is_tensor(node.all_input_nodes[0]):
        return _takes_parameters(program, node.all_input_nodes[0])  # a module may return several tensors
    if node.op == "call_module":
        return any(True for _ in program.resolve(str(node.target)).parameters())
    own = (source for source in node.all_input_nodes if source.op == "get_attr")
    return any(isinstance(program.resolve(str(source.target)), nn.Parameter) for source in own)


def _read_by_value(graph: fx.Graph) -> set[fx.Node]:
    found: set[fx.Node] = set()
    for node in reversed(graph.nodes):
        if node.op == "output" or node in found:
            if operation_of(node).name == "expand_as":
                found.update(source for source in node.args[:1] if isinstance(source, fx.Node))
            elif not has(node, SHAPE_ONLY):
                found.update(node.all_input_nodes)
    return found
