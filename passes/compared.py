"""What graphs take and return, and whether two of them compute the same: the words in which passes promise."""

from __future__ import annotations

from collections.abc import Iterable, Mapping
from typing import Any

from torch import fx

from tracecompile.graphs.whole_steps import value_of_step
from tracecompile.program import is_tensor


def taken_by(module: fx.GraphModule) -> list[str]:
    """Returns the names of what a graph takes."""
    return [node.name for node in module.graph.nodes if node.op == "placeholder"]


def returned_by(module: fx.GraphModule) -> Any:
    """Returns what a graph returns, with its nodes in the place of values."""
    return next(node for node in reversed(module.graph.nodes) if node.op == "output").args[0]


def difference(pairs: Iterable[tuple[fx.Node, fx.Node]], known: Mapping[fx.Node, fx.Node]) -> str | None:
    """Returns where two graphs compute different things, or None.

    A tensor that the one computes once the other must compute once, too: it may be random. A number may be computed
    wherever it is needed.

    Args:
        pairs: Values of the one, and what must be the same in the other.
        known: Where to stop: arguments of the one, and what stands for them in the other.
    """
    twins = dict(known)
    taken: dict[fx.Node, fx.Node] = {}
    compared: set[tuple[fx.Node, fx.Node]] = set()
    waiting = list(pairs)
    while waiting:
        one, other = waiting.pop()
        if (one, other) in compared or twins.get(one) is other:
            continue
        compared.add((one, other))
        if is_tensor(one):
            if one in twins or other in taken:
                return f"{one.name} has become {other.name}"
            twins[one], taken[other] = other, one
        sources = _sources_alike(one, other)
        if sources is None:
            return f"{one.format_node()} has become {other.format_node()}"
        waiting += sources
    return None


def _sources_alike(one: fx.Node, other: fx.Node) -> list[tuple[fx.Node, fx.Node]] | None:
    """Returns the pairs of what two nodes read, if these do the same to it; else None."""
    for spelled in (_operation, _value_of_step):
        (does, sources), (does_too, others) = spelled(one), spelled(other)
        if does is not None and does == does_too:
            return list(zip(sources, others, strict=True))
    return None


def _operation(node: fx.Node) -> tuple[Any, list[fx.Node]]:
    sources, shape = taken_apart(node)
    return (node.op, node.target, shape), sources


def _value_of_step(node: fx.Node) -> tuple[Any, list[fx.Node]]:
    """Returns which value of a neuron's step a node is: the step may be called once for all of its values."""
    whole = value_of_step(node)
    if whole is None:
        return None, []
    step, position, call = whole
    sources, shape = taken_apart(call)
    return (id(step), position, shape), sources


def taken_apart(node: fx.Node) -> tuple[list[fx.Node], Any]:
    """Returns the nodes among a node's arguments, in order, and the arguments with holes where these were."""
    sources: list[fx.Node] = []

    def hole(source: fx.Node) -> Any:
        sources.append(source)
        return ...

    return sources, fx.map_arg((node.args, node.kwargs), hole)
