"""A step with its backward, in parts: what goes from step to step, and what is done for all steps of a piece at once.

A product of the step forward is kept for backward, which would else compute it again. The gradient of what every step
reads, such as a lateral weight, is a sum over time: where it comes of a product, all steps have one product together,
of their rows side by side, as the synapses below them have.
"""

from __future__ import annotations

import operator
from collections.abc import Collection, Iterable, Sequence
from dataclasses import dataclass
from itertools import islice
from typing import Any

import torch
from torch import Tensor, fx
from torch.func import functionalize
from torch.fx.experimental.proxy_tensor import make_fx

from tracecompile.operations.cone import cone
from tracecompile.runtime.engine.overtime import OverTime, Sums

aten = torch.ops.aten
COSTLY = (
    aten.mm.default,
    aten.addmm.default,
    aten.bmm.default,
    aten.baddbmm.default,
    aten.convolution.default,
)
"""Products, which are kept; everything else is cheaper to compute again."""


@dataclass(frozen=True)
class Places:
    """What the arguments of a step are.

    Attributes:
        values: How many are values of the moment, the first ones.
        moving: How many are these or states, which follow: the others are read by every step.
        count: How many there are.
    """

    values: int
    moving: int
    count: int


@dataclass(frozen=True)
class Divided:
    """A step with its backward, in parts.

    Attributes:
        places: Of the arguments.
        forward: (*arguments) to (*results, *kept); None where it has no product, and is run again instead.
        kept: How many are kept.
        back: (*arguments, *kept, *cotangents) to (*gradients of what moves, *rows).
        finish: (*arguments, *cotangents, *sides, *what was added up) to the gradients of what every step reads.
        moving, shared: Positions of the arguments that these gradients are of.
        reads: Positions of the states that backward reads.
        sums: What is summed over time.
    """

    places: Places
    forward: fx.GraphModule | None
    kept: int
    back: fx.GraphModule
    finish: fx.GraphModule
    moving: tuple[int, ...]
    shared: tuple[int, ...]
    reads: tuple[int, ...]
    sums: Sums


def divided(step: fx.GraphModule, places: Places, wanted: Sequence[int]) -> Divided:
    """Divides a step.

    Args:
        step: (*arguments, *cotangents of the results) to [*results, *gradients of the wanted arguments], see ``plain``.
        places: Of the arguments.
        wanted: Positions of the arguments whose gradients it returns.
    """
    given = [node for node in step.graph.nodes if node.op == "placeholder"]
    arguments, cotangents = given[: places.count], given[places.count :]
    made: Any = next(node for node in step.graph.nodes if node.op == "output").args[0]
    results = made[: len(made) - len(wanted)]
    gradient = dict(zip(wanted, made[len(results) :], strict=True))
    moving = [gradient[place] for place in wanted if place < places.moving]
    shared = [gradient[place] for place in wanted if place >= places.moving]
    of_one = arguments[: places.moving]

    over_time = OverTime(shared, _same_at_every_step(step.graph, arguments[places.moving :]), [*of_one, *cotangents])
    sums = over_time.sums(of_one)
    returned = [*moving, *sums.rows]
    products = _products(step.graph, of_one, cotangents)
    kept: list[fx.Node] = []
    forward = None
    if products & cone(results):
        needed = cone(returned, products.__contains__)
        kept = [node for node in step.graph.nodes if node in needed and node in products]
        forward = _part(step, arguments, [*results, *kept])
    back = _part(step, [*arguments, *kept, *cotangents], returned)
    finish = over_time.finish(step, given, shared)
    joined = {side.source for side in sums.sides}
    reads = [place for place in range(places.values, places.moving) if place in joined or _reads((back, finish), place)]
    return Divided(
        places,
        forward,
        len(kept),
        back,
        finish,
        tuple(place for place in wanted if place < places.moving),
        tuple(place for place in wanted if place >= places.moving),
        tuple(reads),
        sums,
    )


def plain(step: fx.GraphModule, arguments: Sequence[Tensor]) -> fx.GraphModule:
    """Returns a graph of elementary operations with nothing in place, without aliases, nothing computed twice."""
    from torch._functorch.compile_utils import fx_graph_cse  # a second of its own, for those who compile alone

    if any(getattr(getattr(node.target, "_schema", None), "is_mutable", False) for node in step.graph.nodes):
        step = make_fx(functionalize(step, remove="mutations"), tracing_mode="symbolic")(*arguments)
    for node in list(step.graph.nodes):
        if node.target in (aten.detach.default, aten.alias.default):
            node.replace_all_uses_with(node.args[0])
            step.graph.erase_node(node)
        elif node.target is aten.convolution_backward.default:
            _one_by_one(step.graph, node)
    step.graph = fx_graph_cse(step.graph)
    step.graph.eliminate_dead_code()
    step.recompile()
    return step


def _one_by_one(graph: fx.Graph, node: fx.Node) -> None:
    """Lets the three gradients of a convolution be three nodes."""
    signal: Any = node.args[0]
    for item in list(node.users):
        alone: fx.Node
        with graph.inserting_before(item):
            if item.args[1] == 2:
                axes = [axis for axis in range(signal.meta["val"].ndim) if axis != 1]
                alone = graph.call_function(aten.sum.dim_IntList, (signal, axes))
            else:
                mask = [place == item.args[1] for place in range(3)]
                arguments = (*node.args[:3], None, *node.args[4:10], mask)
                one = graph.call_function(aten.convolution_backward.default, arguments)
                alone = graph.call_function(operator.getitem, (one, item.args[1]))
        alone.meta = item.meta
        item.replace_all_uses_with(alone)
        graph.erase_node(item)


def _same_at_every_step(graph: fx.Graph, shared: Sequence[fx.Node]) -> set[fx.Node]:
    """Returns what depends on sizes and on what every step reads alone."""
    found = set(shared)
    for node in graph.nodes:
        size = isinstance(node.meta.get("val"), (int, torch.SymInt))
        made = node.op == "call_function" and node.all_input_nodes and found.issuperset(node.all_input_nodes)
        if size or made or node.op == "get_attr":
            found.add(node)
    return found


def _products(graph: fx.Graph, moving: Collection[fx.Node], cotangents: Collection[fx.Node]) -> set[fx.Node]:
    """Returns the products of a step forward."""
    varying, backward = set(moving), set(cotangents)
    for node in graph.nodes:
        for found in (varying, backward):
            if not found.isdisjoint(node.all_input_nodes):
                found.add(node)
    return {node for node in graph.nodes if node.target in COSTLY and node in varying and node not in backward}


def _part(step: fx.GraphModule, given: Sequence[fx.Node], results: Sequence[fx.Node]) -> fx.GraphModule:
    """Returns the graph from some nodes to others."""
    graph = fx.Graph()
    values = {node: graph.placeholder(node.name) for node in given}
    needed = cone(results, set(given).__contains__)
    for node in step.graph.nodes:
        if node in needed and node not in values:
            values[node] = graph.node_copy(node, values.__getitem__)
    graph.output([values[node] for node in results])
    return fx.GraphModule(step, graph)


def _reads(parts: Iterable[fx.GraphModule], place: int) -> bool:
    """Tells whether one of some graphs reads what it is given at a place."""
    return any(next(islice(part.graph.nodes, place, None)).users for part in parts)
