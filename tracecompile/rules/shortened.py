"""Elementary operations, as they are traced at one call, with less to do: for calls that differ in values alone."""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence
from functools import partial
from typing import Any

import torch
from torch import Tensor, fx

MADE = {"new_ones", "new_zeros", "new_full", "ones_like", "zeros_like", "full_like", "ones", "zeros", "full"}
"""Operations that read no values."""
VIEWS = {"expand", "view", "unsqueeze", "squeeze", "permute", "t"}
"""Operations whose results lie where their first argument does."""
WITH_NUMBERS = {"add", "sub", "mul", "div", "add_", "sub_", "mul_", "div_", "gt", "ge", "lt", "le", "eq", "ne"}
"""Operations that make a tensor of a number among their arguments, which takes as long as they do."""
FULL = (torch.float32, torch.float64)
"""Precisions in which a number and a tensor of no dimensions count the same."""

Values = Mapping[fx.Node, Any]


def shortened(module: fx.GraphModule, given: Sequence[Tensor]) -> Callable[..., Any]:
    """Returns the same computation with less to do.

    What reads no values is computed now, an expansion to the same shape is left out, numbers are tensors already, and
    methods of tensors are called in the place of overloads, which take longer to find their way.

    Args:
        module: Calls overloads of torch.ops.aten.
        given: What it is to be called with, values apart.
    """
    writer = _Writer(module, given)
    for node in module.graph.nodes:
        writer.add(node)
    return partial(fx.GraphModule(module, writer.graph).forward, *writer.constants)


class _Writer:
    """Copies a graph, node by node, and leaves out what can be."""

    def __init__(self, module: fx.GraphModule, given: Sequence[Tensor]) -> None:
        self.graph, self.copies = fx.Graph(), dict[fx.Node, fx.Node]()
        self.constants: list[Tensor] = []
        self.first = next(iter(module.graph.nodes))
        known = _Values(module)
        known.run(*given)
        self.values, self.unchanging = known.found, _unchanging(module.graph)

    def add(self, node: fx.Node) -> None:
        """Adds what is left of a node."""
        if node in self.unchanging:
            if any(user not in self.unchanging for user in node.users):
                self.copies[node] = self._constant(self.values[node])
        elif _looks_the_same(node, self.values):
            self.copies[node] = self.copies[node.all_input_nodes[0]]
        else:
            copy = self.copies[node] = self.graph.node_copy(node, self.copies.__getitem__)
            copy.target = _method(node)
            number = _number(node, self.values)
            if number is not None:
                copy.update_arg(1, self._constant(number))

    def _constant(self, value: Tensor) -> fx.Node:
        """Returns the argument that is this value at every call; these come first."""
        self.constants.append(value)
        with self.graph.inserting_before(self.copies[self.first]):
            return self.graph.placeholder(f"constant_{len(self.constants)}")


class _Values(fx.Interpreter):
    """Runs a graph, and keeps what every node returns."""

    def __init__(self, module: fx.GraphModule) -> None:
        super().__init__(module)
        self.found: dict[fx.Node, Any] = {}

    def run_node(self, n: fx.Node) -> Any:
        """Returns and keeps the value of a node."""
        self.found[n] = super().run_node(n)
        return self.found[n]


def _name(node: fx.Node) -> str:
    """Returns the name of the operation that a node calls, without that of its overload."""
    target = node.target
    return target.overloadpacket.__name__ if isinstance(target, torch._ops.OpOverload) else ""


def _unchanging(graph: fx.Graph) -> set[fx.Node]:
    """Returns the nodes that are the same at every call, and that nobody writes to or is handed."""
    found: set[fx.Node] = set()
    for node in graph.nodes:
        if _name(node) in MADE or (_name(node) in VIEWS and node.args[0] in found):
            found.add(node)
    for node in reversed(graph.nodes):
        if any(user.op == "output" or (user not in found and node in _shared(user)) for user in node.users):
            found.discard(node)
    return found


def _shared(node: fx.Node) -> set[Any]:
    """Returns the arguments that an operation writes to, or that its result may lie in."""
    if not isinstance(node.target, torch._ops.OpOverload):
        return set(node.all_input_nodes)
    arguments = node.target._schema.arguments
    given = dict(zip((argument.name for argument in arguments), node.args, strict=False)) | node.kwargs
    shared = (given.get(argument.name) for argument in arguments if argument.alias_info is not None)
    return {argument for argument in shared if isinstance(argument, fx.Node)}


def _looks_the_same(node: fx.Node, values: Values) -> bool:
    """Tells whether a node is an expansion to the shape that its argument has."""
    return _name(node) == "expand" and values[node].shape == values[node.all_input_nodes[0]].shape


def _number(node: fx.Node, values: Values) -> Tensor | None:
    """Returns the number that a node takes beside a tensor, as a tensor; None where it takes none, or on a device."""
    if _name(node) not in WITH_NUMBERS or len(node.args) < 2 or type(node.args[1]) not in (int, float):
        return None
    beside = values[node.all_input_nodes[0]]
    if beside.dtype not in FULL or beside.is_cuda:
        return None
    return torch.tensor(node.args[1], dtype=beside.dtype)


def _method(node: fx.Node) -> Callable[..., Any] | str:
    """Returns the method of tensors that does what a node does, or what it calls."""
    if not isinstance(node.target, torch._ops.OpOverload):
        return node.target
    arguments = node.target._schema.arguments
    is_method = bool(node.args) and arguments[0].name == "self"  # of where it is the condition
    return getattr(torch.Tensor, _name(node), node.target) if is_method else node.target
