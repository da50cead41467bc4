"""Gradients of what every step reads, which are sums over time: what of them is computed for all steps at once."""

from __future__ import annotations

import operator
from collections.abc import Iterable, Iterator, Sequence
from dataclasses import dataclass
from typing import Any

import torch
from torch import Tensor, fx
from torch.fx.node import map_arg

aten = torch.ops.aten

TURNED = (aten.t.default, aten.transpose.int, aten.permute.default)
LINEAR = (
    *TURNED,
    aten.view.default,
    aten._unsafe_view.default,
    aten.unsqueeze.default,
    aten.squeeze.default,
    aten.squeeze.dim,
    aten.squeeze.dims,
    aten.expand.default,
    aten.clone.default,
    aten.neg.default,
    aten.mul.Scalar,
    aten.div.Tensor,
    aten.div.Scalar,
    aten.select_backward.default,
    aten.slice_backward.default,
)
"""Linear in their first argument: done once, to the sum, instead of to what is summed."""
IN_EITHER = (aten.mul.Tensor, aten.mm.default, aten.bmm.default)
"""Linear in each of their arguments, where the other is the same at every step."""
ADDED = (aten.add.Tensor, aten.sub.Tensor)
OVER_ROWS = (aten.sum.default, aten.sum.dim_IntList)
PRODUCTS: dict[Any, tuple[tuple[int, int], ...]] = {
    aten.mm.default: ((0, 1), (1, 0)),
    aten.bmm.default: ((0, 2), (1, 1)),
    aten.convolution_backward.default: ((0, 0), (1, 0)),
}
"""(argument, axis) of their sides: what several steps add up to is one product of the sides joined along these axes."""


@dataclass(frozen=True)
class Side:
    """One side of a product, in every step.

    Attributes:
        source: Position of what it is, transpositions aside: among the arguments of the step that are of one moment,
            or behind them among the rows that a step backward returns.
        turns: The transpositions, in their order.
        axis: Along which the steps are joined, before them.
    """

    source: int
    turns: tuple[tuple[Any, tuple[Any, ...]], ...]
    axis: int

    def joined(self, rows: Tensor) -> Tensor:
        """Returns all steps side by side, from (steps, *shape)."""
        found = rows.movedim(0, self.axis).flatten(self.axis, self.axis + 1)
        for target, arguments in self.turns:
            found = target(found, *arguments)
        return found


@dataclass(frozen=True)
class Sums:
    """What is summed over time.

    Attributes:
        rows: What a step backward returns for it.
        sides: Of products, one after the other.
        added: Positions among the rows of what is added up step by step.
    """

    rows: tuple[fx.Node, ...]
    sides: tuple[Side, ...]
    added: tuple[int, ...]


class OverTime:
    """Sums over time of some nodes of a step backward.

    Attributes:
        leaves: What the wanted sums are linear in, each once.
    """

    def __init__(self, wanted: Iterable[fx.Node], same: set[fx.Node], moving: Sequence[fx.Node]) -> None:
        """Finds the leaves.

        Args:
            wanted: Nodes whose sums are wanted.
            same: Nodes that are the same at every step.
            moving: Values, states and cotangents of one step: nothing larger is added up step by step.
        """
        self._same = same
        self._shapes = {_shape(node) for node in moving}
        self.leaves = tuple(dict.fromkeys(leaf for node in wanted for leaf in self._leaves(node)))

    def _leaves(self, node: fx.Node) -> list[fx.Node]:
        if node in self._same or node.op != "call_function" or self.is_product(node):
            return [node]
        if node.target in ADDED and all(isinstance(each, fx.Node) for each in node.args):
            return [leaf for each in node.all_input_nodes for leaf in self._leaves(each)]
        varying = [each for each in node.all_input_nodes if each not in self._same]
        if len(varying) != 1 or not (varying[0] is node.args[0] or node.target in IN_EITHER):
            return [node]
        found = self._leaves(varying[0])
        passes = node.target in LINEAR
        if node.target in (aten._to_copy.default, operator.getitem):  # what is added up is so in the wider type
            passes = all(map(self.is_product, found))
        elif node.target in (*OVER_ROWS, *IN_EITHER):
            passes = all(self.is_product(leaf) or _shape(leaf) in self._shapes for leaf in found)
        return found if passes else [node]

    def is_product(self, node: fx.Node) -> bool:
        """Tells whether the sum over time of a node is one product."""
        sides = [at for at, _ in PRODUCTS.get(node.target, ())]
        both = sides and self._same.isdisjoint(node.args[at] for at in sides)
        return bool(both) and self._all_same([value for at, value in enumerate(node.args) if at not in sides])

    def _all_same(self, given: Any) -> bool:
        return all(node in self._same for node in _nodes_in(given))

    def sums(self, arguments: Sequence[fx.Node]) -> Sums:
        """Returns what is summed.

        Args:
            arguments: Of the step that are of one moment: there are rows of them already.
        """
        sources = list(arguments)
        sides, added = [], []

        def place(node: fx.Node) -> int:
            if node not in sources:
                sources.append(node)
            return sources.index(node)

        for leaf in self.leaves:
            if not self.is_product(leaf):
                added.append(leaf)
                continue
            for at, axis in PRODUCTS[leaf.target]:
                node, turns, axis = _unturned(leaf.args[at], axis)
                sides.append(Side(place(node), turns, axis))
        rows = sources[len(arguments) :]
        return Sums((*rows, *added), tuple(sides), tuple(range(len(rows), len(rows) + len(added))))

    def finish(self, step: fx.GraphModule, given: Sequence[fx.Node], wanted: Sequence[fx.Node]) -> fx.GraphModule:
        """Returns the graph of (*given, *sides, *added) to the wanted sums."""
        graph = fx.Graph()
        values = {node: graph.placeholder(node.name) for node in given}
        products = [leaf for leaf in self.leaves if self.is_product(leaf)]
        sides = {leaf: [graph.placeholder(f"{leaf.name}_{at}") for at, _ in PRODUCTS[leaf.target]] for leaf in products}
        values |= {leaf: graph.placeholder(f"{leaf.name}_sum") for leaf in self.leaves if leaf not in sides}

        def copied(node: fx.Node) -> fx.Node:
            if node not in values:
                joined = iter(sides.get(node, ()))
                own = {at: next(joined) for at, _ in PRODUCTS[node.target]} if node in sides else {}
                for each in _nodes_in([value for at, value in enumerate(node.args) if at not in own], node.kwargs):
                    copied(each)
                arguments = tuple(own.get(at, map_arg(value, values.get)) for at, value in enumerate(node.args))
                values[node] = graph.create_node(node.op, node.target, arguments, map_arg(node.kwargs, values.get))
            return values[node]

        graph.output([copied(node) for node in wanted])
        return fx.GraphModule(step, graph)


def _nodes_in(*given: Any) -> Iterator[fx.Node]:
    found: list[fx.Node] = []
    map_arg(given, lambda node: found.append(node))
    return iter(found)


def _shape(node: fx.Node) -> str:
    return str(tuple(getattr(node.meta.get("val"), "shape", ())))


def _unturned(node: Any, axis: int) -> tuple[fx.Node, tuple[tuple[Any, tuple[Any, ...]], ...], int]:
    """Returns what a node is but for transpositions, these, and where an axis is before them."""
    turns: list[tuple[Any, tuple[Any, ...]]] = []
    while node.target in TURNED:
        turns.insert(0, (node.target, node.args[1:]))
        axis = _axes(node)[axis]
        node = node.args[0]
    return node, tuple(turns), axis


def _axes(node: fx.Node) -> list[int]:
    """Returns which axis of its argument each axis of a transposition is."""
    axes = list(range(node.meta["val"].ndim))
    if node.target is aten.permute.default:
        return [axis % len(axes) for axis in node.args[1]]  # type: ignore[union-attr,operator,misc]
    if len(axes) > 1:
        one, other = node.args[1:] if node.target is aten.transpose.int else (0, 1)
        axes[one], axes[other] = axes[other], axes[one]  # type: ignore[index]
    return axes
