"""Cuts graphs out of a tape."""

from __future__ import annotations

from collections.abc import Callable, Iterable, Mapping, Sequence
from typing import Any

import torch
from torch import fx, nn
from torch.utils import _pytree as pytree

from tracecompile.operations import SHAPE_ONLY, Fact, has
from tracecompile.operations.cone import cone


class GraphCutter:
    """Copies what some results need out of a tape, up to given boundaries.

    Args:
        resolve: Says what stands for a node or an argument of the tape; NotImplemented to copy it.
    """

    def __init__(self, resolve: Callable[[GraphCutter, Any], Any] | None = None) -> None:
        self.graph = fx.Graph()
        self.copies: dict[fx.Node, Any] = {}
        self.resolve = resolve

    def placeholder(
        self, name: str, stands_for: Iterable[fx.Node] = (), value: Any = None, where: Any = None
    ) -> fx.Node:
        """Adds a placeholder; it stands for these nodes of the tape."""
        node = self.graph.placeholder(name)
        node.meta.update(val=value, where=where)
        for original in stands_for:
            self.copies[original] = node
        return node

    def add(
        self, op: str, target: Any, args: tuple[Any, ...], kwargs: dict[str, Any], value: Any, where: Any = None
    ) -> fx.Node:
        """Adds a node that the tape does not have."""
        node = self.graph.create_node(op, target, args, kwargs)
        node.meta.update(val=value, where=where)
        return node

    def take(self, argument: Any) -> Any:
        """Returns the copy of a node, or of an argument with nodes in it, copying what it needs."""
        if self.resolve is not None:
            resolved = self.resolve(self, argument)
            if resolved is not NotImplemented:
                return resolved
        if isinstance(argument, fx.Node):
            if argument not in self.copies:
                self.copies[argument] = self._copy(argument)
            return self.copies[argument]
        if isinstance(argument, tuple) and hasattr(argument, "_fields"):
            return type(argument)(*[self.take(item) for item in argument])
        if isinstance(argument, (tuple, list)):
            return (
                type(argument)([self.take(item) for item in argument])
                if isinstance(argument, tuple)
                else [self.take(item) for item in argument]
            )
        if isinstance(argument, dict):
            return {key: self.take(item) for key, item in argument.items()}
        if isinstance(argument, slice):
            return slice(self.take(argument.start), self.take(argument.stop), self.take(argument.step))
        return argument

    def _copy(self, node: fx.Node) -> fx.Node:
        # One by one: the arguments of an operation are no list of the user's.
        args = tuple(self.take(argument) for argument in node.args)
        kwargs = {key: self.take(argument) for key, argument in node.kwargs.items()}
        copied = self.graph.create_node(node.op, node.target, args, kwargs, name=node.name)
        copied.meta.update({key: node.meta.get(key) for key in ("val", "where", "place")}, draws=is_random(node))
        return copied

    def finish(self, results: Any) -> fx.Graph:
        """Closes the graph with its results, which are nodes of the new graph."""
        self.graph.output(results).meta.update(where=None)
        return self.graph


def graph_module(graph: fx.Graph, root: nn.Module, leaves: Mapping[str, nn.Module], name: str) -> fx.GraphModule:
    """Wraps a graph with the modules and tensors that it names."""
    graph.lint()
    owned: dict[str, Any] = {}
    for node in graph.nodes:
        if node.op in ("call_module", "get_attr"):
            target = str(node.target)
            owned[target] = leaves[target] if target in leaves else find(root, target)
    return fx.GraphModule(owned, graph, name)


def find(root: nn.Module, target: str) -> Any:
    """Returns what a dotted target names."""
    value: Any = root
    for part in target.split("."):
        value = getattr(value, part)
    return value


def read_by_value(nodes: Iterable[Any]) -> set[fx.Node]:
    """Returns the nodes whose values some nodes need, themselves included: the shape of a tensor is not its value."""
    return cone(nodes, lambda node: has(node, SHAPE_ONLY))


def take_in_order(cutter: GraphCutter, graph: fx.Graph, wanted: list[fx.Node]) -> list[fx.Node]:
    """Copies what is wanted in the order of the user's code, so that random numbers are drawn in that order."""
    needed = cone(wanted, lambda node: node in cutter.copies)
    for node in graph.nodes:
        if node in needed:
            cutter.take(node)
    return [cutter.take(node) for node in wanted]


def is_random(node: fx.Node) -> bool:
    """Tells whether a node drew random numbers when the model ran: torch's generators had moved."""
    return bool(node.meta.get("draws"))


def is_dropout(node: fx.Node, root: nn.Module) -> bool:
    """Tells whether a node is a module of the model's that draws in training."""
    if node.op != "call_module":
        return False
    path, _, name = str(node.target).rpartition(".")
    return has(node, Fact.DROPS, getattr(root.get_submodule(path), name, None))


def same_graph(first: fx.Graph, second: fx.Graph) -> bool:
    """Tells whether two graphs are the same up to the names of their nodes."""
    return describe(first) == describe(second)


def describe(graph: fx.Graph) -> list[tuple[Any, ...]]:
    """Returns a graph's nodes with positions in place of names."""
    positions = {node: position for position, node in enumerate(graph.nodes)}
    described = []
    for node in graph.nodes:
        arguments = fx.map_arg((node.args, node.kwargs), lambda used: f"%{positions[used]}")
        target = "" if node.op in ("placeholder", "output") else str(node.target)
        described.append((node.op, target, repr(arguments)))
    return described


def evaluate(
    graph: fx.Graph,
    values: Sequence[Any],
    root: nn.Module,
    leaves: Mapping[str, nn.Module],
    remember: bool = True,
    as_drawn: bool = False,
) -> Any:
    """Runs a graph and, where asked to remember, refreshes ``meta["val"]`` of every node.

    With ``as_drawn`` nothing is drawn: random numbers are those that the model drew while it was captured.
    """
    environment: dict[fx.Node, Any] = {}
    arguments = iter(values)
    for node in graph.nodes:
        args, kwargs = fx.map_arg((node.args, node.kwargs), lambda used: environment[used])
        if node.op == "placeholder":
            value = next(arguments)
        elif node.op == "output":
            return args[0]
        elif node.op == "get_attr":
            value = find(root, str(node.target))
        elif as_drawn and (is_random(node) or is_dropout(node, root)):
            value = node.meta["val"]
        elif node.op == "call_module":
            target = str(node.target)
            value = (leaves[target] if target in leaves else find(root, target))(*args, **kwargs)
        elif node.op == "call_method":
            value = getattr(args[0], str(node.target))(*args[1:], **kwargs)
        else:
            value = node.target(*args, **kwargs)
        environment[node] = value
        if remember:
            node.meta["val"] = pytree.tree_map(
                lambda leaf: leaf.detach() if isinstance(leaf, torch.Tensor) else leaf, value
            )
    raise AssertionError("a graph ends in its output")


def alike(value: Any, wanted: torch.Tensor) -> bool:
    """Tells whether a value is a tensor of the wanted shape and dtype."""
    return isinstance(value, torch.Tensor) and value.shape == wanted.shape and value.dtype == wanted.dtype
