"""The values that states start from, and what of the first step is computed for their sake."""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

import torch
from torch import fx

from tracecompile.capture.loops.loop_body import Loop, Past
from tracecompile.capture.steps.shapes import same_shape_above
from tracecompile.capture.tracing.build import GraphCutter
from tracecompile.capture.tracing.tape import Tape


def asked_ahead(loop: Loop) -> Callable[[fx.Node], bool]:
    """Returns what tells whether a node is computed by the first step of a rolled loop.

    Such a node is a visit of a site of every step, or what the user has written before the loop in place of the first
    visit. A norm that is run before the loop besides is none: the loop does not run it again.
    """
    every = [site for site in loop.visits if site not in loop.sometimes]
    replaced = {_call(loop.template(site)) for site in every if loop.at(site, 0) is None}

    def is_ahead(node: fx.Node) -> bool:
        own = node in loop.when and loop.when[node][1] not in loop.sometimes
        return own or _call(node) in replaced

    return is_ahead


def _call(node: fx.Node) -> tuple[Any, ...]:
    """Returns what a node calls, and which attributes of the model it calls it with."""
    return node.op, node.target, *(source.target for source in node.all_input_nodes if source.op == "get_attr")


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


def shaped(cutter: GraphCutter, node: fx.Node, number: float | None, like: fx.Node, later: fx.Node) -> fx.Node:
    """Gives an initial state the shape that the state has later.

    Args:
        cutter: Of the prologue.
        node: What the state starts from, or what has its shape.
        number: What to fill that shape with, None for the node itself.
        like: What has the shape.
        later: The state after a step. A tensor without dimensions does not count for the type of a sum, and would
            with the shape.
    """
    source: fx.Node = cutter.take(node)
    value, where = node.meta["val"], node.meta.get("where")
    if number is not None:
        target, rest = (torch.zeros_like, ()) if number == 0 else (torch.full_like, (number,))
        return cutter.add("call_function", target, (source, *rest), {}, target(value, *rest), where)
    if value.shape == like.meta["val"].shape:
        return source
    expanded = value.expand_as(like.meta["val"])
    made = cutter.add("call_method", "expand_as", (source, cutter.take(like)), {}, expanded, where)
    dtype = later.meta["val"].dtype
    if value.ndim or value.dtype == dtype:
        return made
    return cutter.add("call_method", "to", (made, dtype), {}, expanded.to(dtype), where)
