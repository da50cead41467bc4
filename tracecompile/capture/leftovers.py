"""Tells what a run reads of the state that an earlier run left behind from what merely has its shape."""

from __future__ import annotations

from typing import Any

import torch
from torch import fx
from torch.utils import _pytree as pytree

from tracecompile.capture.build import cone, is_random, read_by_value
from tracecompile.capture.tape import Tape

_FILLS: dict[Any, float] = {torch.zeros_like: 0, "zeros_like": 0, torch.ones_like: 1, "ones_like": 1}
_KEEP = frozenset([torch.detach, "detach", torch.clone, "clone", "contiguous"])


def filled_with(node: Any) -> float | None:
    """Returns the number that a tensor is filled with, where it takes only its shape from another one."""
    while isinstance(node, fx.Node) and node.target in _KEEP:
        node = node.args[0]
    if not isinstance(node, fx.Node) or not isinstance(node.meta.get("val"), torch.Tensor):
        return None
    if node.target in (torch.full_like, "full_like") and len(node.args) == 2:
        number = node.args[1]
        return number if isinstance(number, (int, float)) else None
    return _FILLS.get(node.target) if node.op in ("call_function", "call_method") else None


def attributes_read(tape: Tape) -> set[str]:
    """Returns the attributes whose values, and not just shapes, the result depends on."""
    results = pytree.tree_leaves(tape.result)
    return {str(node.target) for node in read_by_value(results) if node.op == "get_attr"}


def shaped_by_leftover(node: fx.Node, tape: Tape) -> bool:
    """Tells whether a filled tensor has the shape of what an earlier call left behind, whatever this call's input."""
    return any(source.op == "get_attr" and source.target in tape.written for source in cone([node]))


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
