"""Tells what a run reads of the state that an earlier run left behind from what merely has its shape."""

from __future__ import annotations

from typing import Any

import torch
from torch import fx
from torch.utils import _pytree as pytree

from tracecompile.capture.tracing.build import alike, is_random, read_by_value
from tracecompile.capture.tracing.tape import Tape
from tracecompile.operations import Fact, has, operation_of


def filled_with(node: Any) -> float | None:
    """Returns the number that a tensor is filled with, where it takes only its shape from another one."""
    while isinstance(node, fx.Node) and has(node, Fact.COPIES | Fact.DETACHES):
        node = node.args[0]
    if not isinstance(node, fx.Node) or not isinstance(node.meta.get("val"), torch.Tensor):
        return None
    operation = operation_of(node)
    if Fact.LIKE not in operation.facts:
        return None
    if operation.name == "full_like" and len(node.args) == 2:
        number = node.args[1]
        return number if isinstance(number, (int, float)) else None
    return operation.fill


def attributes_read(tape: Tape) -> set[str]:
    """Returns the attributes whose values, and not just shapes, the result depends on."""
    results = pytree.tree_leaves(tape.result)
    return {str(node.target) for node in read_by_value(results) if node.op == "get_attr"}


def shape_by_input(tape: Tape) -> Tape:
    """Gives states that are reset to a number the shape of this call's input, where they have an earlier call's.

    ``self.mem = torch.zeros_like(self.mem)`` fits the batch that the model saw last, which the example may share by
    chance. Whoever resets a state like that makes it anew for a batch of another size.
    """
    if not tape.written:
        return tape
    position = {node: place for place, node in enumerate(tape.graph.nodes)}
    varying: dict[fx.Node, None] = {}
    for node in tape.graph.nodes:
        if node.op == "placeholder" or any(source in varying for source in node.all_input_nodes):
            varying[node] = None
    for node in list(tape.graph.nodes):
        number = filled_with(node)
        readers = [user for user in node.users if filled_with(user) is None]
        if number is None or not readers or not _shaped_by_leftover(node, tape):
            continue
        first = min(position.get(reader, 0) for reader in readers)
        alike_before = (one for one in varying if position[one] < first and alike(one.meta["val"], node.meta["val"]))
        like = next(alike_before, None)
        if like is not None:
            with tape.graph.inserting_after(like):
                fresh = tape.graph.call_function(torch.full_like, (like, number)) if number else None
                fresh = fresh or tape.graph.call_function(torch.zeros_like, (like,))
            fresh.meta.update(val=node.meta["val"], where=node.meta.get("where"), place=None)
            for reader in readers:
                reader.replace_input_with(node, fresh)
    return tape


def _shaped_by_leftover(node: Any, tape: Tape) -> bool:
    while isinstance(node, fx.Node) and filled_with(node) is not None:
        node = node.args[0]
    return isinstance(node, fx.Node) and node.op == "get_attr" and node.target in tape.written


def same_results(first: Tape, second: Tape) -> bool:
    """Tells whether two runs compute the same results, up to the order and the names of their operations."""
    known: dict[Any, int] = {}
    return _described(first, known) == _described(second, known)


def _described(tape: Tape, known: dict[Any, int]) -> list[Any]:
    leaves = pytree.tree_leaves(tape.result)
    needed = read_by_value(leaves)
    numbers: dict[fx.Node, int] = {}
    drawn = 0
    for node in tape.graph.nodes:
        if node not in needed:
            continue
        number = filled_with(node)
        if number is not None:
            value = node.meta["val"]
            key: Any = ("filled", number, tuple(value.shape), value.dtype)
        else:
            # Two draws of random numbers are two values, however alike they are written.
            drawn += is_random(node)
            key = (node.op, _target(node), _arguments(node, numbers), drawn if is_random(node) else None)
        numbers[node] = known.setdefault(key, len(known))
    return [numbers[leaf] if isinstance(leaf, fx.Node) else leaf for leaf in leaves]


def _target(node: fx.Node) -> str:
    return node.name if node.op == "placeholder" else str(node.target)


def _arguments(node: fx.Node, numbers: dict[fx.Node, int]) -> str:
    return repr(fx.map_arg((node.args, node.kwargs), lambda used: f"%{numbers.get(used, 'shape')}"))
