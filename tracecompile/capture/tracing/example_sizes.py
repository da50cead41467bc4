"""Sizes of the example that a trace has taken for constants.

A batch size that goes through ``x.shape`` remembers where it came from. One that becomes the length of a Python list, a
plain ``int(...)``, or the shape of an array that numpy makes, does not: right for the example, and wrong for any other
batch, with nothing in one trace to show it. A second trace, with the example of another size, shows it.
"""

from __future__ import annotations

import operator
from collections.abc import Callable, Iterator
from typing import Any

import torch
from torch import fx
from torch.utils import _pytree as pytree

from tracecompile.capture.tracing.build import is_random
from tracecompile.capture.tracing.functionalize import in_place_on_copy
from tracecompile.capture.tracing.tape import Tape
from tracecompile.operations import SHAPE_ONLY, Fact, has, operation_of

MORE = 3
"""How many more samples the second trace has."""

TraceAt = Callable[[int, int], Tape | None]
"""Traces the same call with so many entries along an axis of the first tensor; None where the model cannot."""


def free_sizes(tape: Tape, trace_at: TraceAt, fixed: int | None = None) -> None:
    """Replaces what a trace has built in of the sizes of its first input by these sizes.

    Args:
        tape: The trace; sizes that its operations mention are looked into, and no others.
        trace_at: Takes the second trace.
        fixed: An axis whose size stays.
    """
    first = next(
        (node for node in tape.inputs if node is not None and isinstance(node.meta["val"], torch.Tensor)), None
    )
    if first is None:
        return
    for axis, size in enumerate(first.meta["val"].shape):
        if axis == fixed or not any(mentions(node, size, tape) for node in tape.graph.nodes):
            continue
        other = trace_at(axis, size + MORE)
        if other is None:
            continue
        for each in (tape, other):
            join_repeated(each)
        pairs = list(zip(tape.graph.nodes, other.graph.nodes, strict=False))
        if len(tape.graph.nodes) == len(other.graph.nodes) and all(same_place(*pair) for pair in pairs):
            sizes = Sizes(tape, first, axis, size)
            for one, twin in pairs:
                sizes.replace(one, twin)


def mentions(node: fx.Node, size: int, tape: Tape) -> bool:
    """Tells whether a node may have a size built in."""
    if node.op == "get_attr":
        return str(node.target) in tape.constants and size in tape.constants[str(node.target)].shape
    if not has(node, Fact.TAKES_SIZE):
        return False
    if is_constant(node, tape):
        return size in node.meta["val"].shape
    listed = isinstance(node.args[0], (list, tuple)) and len(node.args[0]) == size if node.args else False
    return listed or any(type(leaf) is int and leaf == size for leaf in flat(node))


def is_constant(node: fx.Node, tape: Tape) -> bool:
    """Tells whether a node is one and the same tensor at every call: nothing goes into it but numbers."""
    if not isinstance(node.meta["val"], torch.Tensor):
        return False
    if node.op == "get_attr":
        return str(node.target) in tape.constants
    return has(node, Fact.OF_NUMBERS) and not node.all_input_nodes


def same_place(one: fx.Node, other: fx.Node) -> bool:
    """Tells whether two nodes of two traces are one expression of the user's code."""
    named = one.op == "get_attr" or str(one.target) == str(other.target)
    return one.op == other.op and named and one.meta.get("place") == other.meta.get("place")


def join_repeated(tape: Tape) -> None:
    """Makes one value of the equal ones in a list: ``stack([torch.zeros(10) for _ in range(batch)])``."""
    for node in list(tape.graph.nodes):
        items = node.args[0] if has(node, Fact.JOINS) and node.args else None
        if not isinstance(items, (list, tuple)) or len(items) < 2 or not all(alike(items[0], item) for item in items):
            continue
        node.args = ([items[0]] * len(items), *node.args[1:])
        for item in items[1:]:
            if not item.users and item is not items[0]:
                tape.graph.erase_node(item)


def alike(one: Any, other: Any) -> bool:
    """Tells whether two entries of a list are the same value."""
    if one is other:
        return isinstance(one, fx.Node)
    if not isinstance(one, fx.Node) or not isinstance(other, fx.Node) or is_random(one):
        return False
    made = one.op.startswith("call_") and one.meta.get("place") is not None and not one.all_input_nodes
    return made and same_place(one, other) and not other.all_input_nodes and flat(one) == flat(other)


def resized_along(call: Any, axis: int, size: int) -> Any:
    """Returns arguments with so many entries along an axis of the first tensor, and of those that go with it."""
    first = next(leaf for leaf in pytree.tree_leaves(call) if isinstance(leaf, torch.Tensor))

    def change(leaf: Any) -> Any:
        if not isinstance(leaf, torch.Tensor):
            return leaf
        axes = [axis, *range(leaf.dim())] if leaf.dim() == first.dim() else range(leaf.dim())
        fitting = next((each for each in axes if leaf.shape[each] == first.shape[axis]), None)
        if fitting is None:
            return leaf
        return leaf.detach().index_select(fitting, torch.arange(size, device=leaf.device) % leaf.shape[fitting])

    return pytree.tree_map(change, call)


class Sizes:
    """Writes the size of an axis of the first input into a trace."""

    def __init__(self, tape: Tape, first: fx.Node, axis: int, size: int) -> None:
        self.tape, self.first, self.axis, self.size = tape, first, axis, size
        self.numbers: dict[tuple[int, int], fx.Node] = {}
        self.repeated: list[fx.Node] = []
        self.last = [node for node in tape.graph.nodes if node.op == "placeholder"][-1]

    def replace(self, node: fx.Node, twin: fx.Node) -> None:
        """Replaces in a node what differs from its twin in the second trace as the sizes do."""
        if is_constant(node, self.tape):
            self._replace_constant(node, twin)
            return
        ones, others = flat(node), flat(twin)
        if len(ones) == len(others):
            for position, (one, other) in enumerate(zip(ones, others, strict=True)):
                number = self.number(one, other)
                if number is not None:
                    put(node, position, number)
        elif has(node, Fact.JOINS) and len({*node.all_input_nodes}) == 1:
            self._replace_list(node, twin)

    def number(self, one: Any, other: Any) -> fx.Node | None:
        """Returns the node of a number that is a multiple of the size, plus something; None where it is none."""
        if type(one) is not int or type(other) is not int or one == other:
            return None
        factor, rest = divmod(other - one, MORE)
        return None if rest or factor < 1 else self._number(factor, one - factor * self.size)

    def _number(self, factor: int, offset: int) -> fx.Node:
        if (factor, offset) not in self.numbers:
            if (factor, offset) == (1, 0):
                made = self._add("call_method", "size", (self.first, self.axis), self.size)
            elif offset == 0:
                made = self._add("call_function", operator.mul, (self._number(1, 0), factor), factor * self.size)
            else:
                times = self._number(factor, 0)
                made = self._add("call_function", operator.add, (times, offset), times.meta["val"] + offset)
            self.numbers[factor, offset] = made
        return self.numbers[factor, offset]

    def _add(self, op: str, target: Any, args: tuple[Any, ...], value: Any) -> fx.Node:
        with self.tape.graph.inserting_after(self.last):
            made: fx.Node = self.tape.graph.create_node(op, target, args)
        made.meta.update(val=value, where=None, place=None)
        self.last = made
        return made

    def _replace_constant(self, node: fx.Node, twin: fx.Node) -> None:
        """Makes a constant as many times its first row as there are samples, where all its rows are alike."""
        value, other = node.meta["val"], twin.meta["val"]
        differing = [dim for dim, (one, two) in enumerate(zip(value.shape, other.shape, strict=False)) if one != two]
        if value.dim() != other.dim() or value.dtype != other.dtype or len(differing) != 1:
            return
        (dim,) = differing
        count, row = self.number(value.shape[dim], other.shape[dim]), value.narrow(dim, 0, 1)
        uniform = bool((value == row).all()) and bool((other == row).all())
        if count is not None and (uniform or all(looks_at_shape(user, node) for user in node.users)):
            self._use_instead(node, self._rows(node, row, dim, count))

    def _rows(self, node: fx.Node, row: torch.Tensor, dim: int, count: fx.Node) -> fx.Node:
        """Returns the node that repeats a row; one for all places, and all steps, that take the same constant."""
        value = node.meta["val"]
        for known in self.repeated:
            held = known.meta["val"]
            if (held.dtype, held.device) == (value.dtype, value.device) and torch.equal(held, value):
                return known
        name = f"captured_row_{len(self.tape.constants)}"
        self.tape.constants[name] = row.detach().clone()
        source = self._add("get_attr", name, (), row)
        times = [count if axis == dim else 1 for axis in range(row.dim())]
        made = self._add("call_method", "repeat", (source, *times), value)
        made.meta["where"] = node.meta.get("where")
        self.repeated.append(made)
        return made

    def _replace_list(self, node: fx.Node, twin: fx.Node) -> None:
        """Repeats the one value of a list that is as long as there are samples."""
        (item,) = {*node.all_input_nodes}
        count = self.number(len(node.args[0]), len(twin.args[0]))  # type: ignore[arg-type]
        given = node.args[1] if len(node.args) > 1 else node.kwargs.get("dim", 0)
        stacked, value = operation_of(node).name == "stack", item.meta["val"]
        if count is None or not isinstance(given, int):
            return
        with self.tape.graph.inserting_before(node):
            source = item
            if stacked:
                source = self.tape.graph.call_method("unsqueeze", (item, given))
                value = value.unsqueeze(given)
                source.meta.update(val=value, where=node.meta.get("where"), place=None)
            times = [count if axis == given % value.dim() else 1 for axis in range(value.dim())]
            made = self.tape.graph.call_method("repeat", (source, *times))
        made.meta.update(node.meta)
        self._use_instead(node, made)

    def _use_instead(self, node: fx.Node, made: fx.Node) -> None:
        tape = self.tape
        node.replace_all_uses_with(made)
        tape.result = pytree.tree_map(lambda leaf: made if leaf is node else leaf, tape.result)
        tape.attributes = {name: made if held is node else held for name, held in tape.attributes.items()}
        tape.graph.erase_node(node)


def looks_at_shape(user: fx.Node, node: fx.Node) -> bool:
    """Tells whether a node takes nothing but the shape of another: what is filled, say, after it was allocated."""
    drawn = user.target is in_place_on_copy and is_random(user) and node not in user.all_input_nodes[1:]
    return has(user, SHAPE_ONLY) or drawn


def flat(node: fx.Node) -> list[Any]:
    """Returns the leaves of a node's arguments."""
    return list(_leaves((node.args, node.kwargs)))


def _leaves(argument: Any) -> Iterator[Any]:
    found: list[Any] = []
    fx.node.map_aggregate(argument, lambda leaf: found.append(leaf))
    yield from found


def put(node: fx.Node, position: int, value: fx.Node) -> None:
    """Replaces one leaf of a node's arguments."""
    counter = iter(range(1 << 30))
    args, kwargs = fx.node.map_aggregate(
        (node.args, node.kwargs), lambda leaf: value if next(counter) == position else leaf
    )
    node.args, node.kwargs = args, kwargs
