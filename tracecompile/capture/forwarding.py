"""Values that are stacked only to be taken apart again."""

from __future__ import annotations

import operator
from typing import Any

import torch
from torch import fx
from torch.utils import _pytree as pytree

from tracecompile.capture.tape import Tape


def forward_stacked_values(tape: Tape) -> Tape:
    """Lets a later loop read the values of an earlier one directly, where it reads them out of their stack.

    A network that runs one layer over the whole sequence, then the next, becomes one that runs both at every step.
    """
    for node in list(tape.graph.nodes):
        stack_instead_of_cat(tape, node)
    for node in list(tape.graph.nodes):
        value = picked_from_stack(node)
        if value is not None:
            node.replace_all_uses_with(value)
    return tape


def stack_instead_of_cat(tape: Tape, node: fx.Node) -> None:
    """Spells ``torch.cat`` of values with a new axis each as ``torch.stack`` of the values."""
    if node.target not in (torch.cat, torch.concat) or not isinstance(node.args[0], (list, tuple)):
        return
    rank = node.meta["val"].dim()
    axes = [node.args[1] if len(node.args) > 1 else node.kwargs.get("dim", 0)]
    items: list[fx.Node] = []
    for item in node.args[0]:
        if not isinstance(item, fx.Node) or item.target not in ("unsqueeze", torch.unsqueeze) or len(item.args) != 2:
            return
        items.append(item.args[0])  # type: ignore[arg-type]
        axes.append(item.args[1])
    if not all(isinstance(axis, int) for axis in axes) or len({axis % rank for axis in axes}) != 1:
        return
    with tape.graph.inserting_before(node):
        stacked = tape.graph.call_function(torch.stack, (items, axes[0] % rank))
    stacked.meta.update(node.meta)
    node.replace_all_uses_with(stacked)
    tape.result = pytree.tree_map(lambda leaf: stacked if leaf is node else leaf, tape.result)


def picked_from_stack(node: fx.Node) -> fx.Node | None:
    """Returns the value that an index picks out of a stack of values."""
    if node.target is not operator.getitem or not isinstance(node.args[0], fx.Node):
        return None
    source, index = node.args[0], node.args[1]
    items = stacked_items(source)
    if items is None and source.target in ("unbind", torch.unbind) and leading(source):
        items = stacked_items(source.args[0])
    if items is None or type(index) is not int or not -len(items) <= index < len(items):
        return None
    return items[index]


def stacked_items(node: Any) -> list[fx.Node] | None:
    """Returns what a node stacks along a new first axis."""
    if not isinstance(node, fx.Node) or node.target is not torch.stack or not leading(node):
        return None
    items = node.args[0]
    return list(items) if isinstance(items, (list, tuple)) else None  # type: ignore[arg-type]


def leading(node: fx.Node) -> bool:
    """Tells whether a node works along the first axis."""
    dim = node.args[1] if len(node.args) > 1 else node.kwargs.get("dim", 0)
    return bool(dim == 0)
