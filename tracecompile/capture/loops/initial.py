"""The values that states start from, in the shape that the states have later."""

from __future__ import annotations

import torch
from torch import fx

from tracecompile.capture.loops.loop_body import Loop, Past
from tracecompile.capture.steps.shapes import same_shape_above
from tracecompile.capture.tracing.build import GraphCutter
from tracecompile.capture.tracing.tape import Tape


def shape_giver(loop: Loop, tape: Tape, past: Past) -> fx.Node:
    """Returns the earliest node that has a state's shape and depends on the input."""
    later = next(node for node in loop.visits[past.site] if node is not None)
    fitting = same_shape_above(later)
    varying: set[fx.Node] = set()
    nodes: list[fx.Node] = list(tape.graph.nodes)
    for node in nodes:
        if node.op == "placeholder" or any(source in varying for source in node.all_input_nodes):
            varying.add(node)
            if node in fitting:
                return node
    return later


def shaped(cutter: GraphCutter, node: fx.Node, number: float | None, like: fx.Node) -> fx.Node:
    """Gives an initial state the shape that the state has later.

    Args:
        cutter: Of the prologue.
        node: What the state starts from, or what has its shape.
        number: What to fill that shape with, None for the node itself.
        like: What has the shape.
    """
    source: fx.Node = cutter.take(node)
    value, where = node.meta["val"], node.meta.get("where")
    if number is not None:
        target, rest = (torch.zeros_like, ()) if number == 0 else (torch.full_like, (number,))
        return cutter.add("call_function", target, (source, *rest), {}, target(value, *rest), where)
    if value.shape == like.meta["val"].shape:
        return source
    expanded = value.expand_as(like.meta["val"])
    return cutter.add("call_method", "expand_as", (source, cutter.take(like)), {}, expanded, where)
