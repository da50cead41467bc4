"""Values that are stacked only to be taken apart again."""

from __future__ import annotations

import operator

import torch
from torch import fx, nn
from torch.utils import _pytree as pytree

from tracecompile.capture.layerwise.each_step import EachStep
from tracecompile.capture.layerwise.stacks import stacked_items, stacking_axis
from tracecompile.capture.tracing.tape import Tape


def forward_stacked_values(tape: Tape, root: nn.Module) -> Tape:
    """Lets a later loop read the values of an earlier one directly, where it reads them out of their stack.

    A network that runs one layer over the whole sequence, then the next, becomes one that runs both at every step.

    Args:
        root: The copy of the model that was traced.
    """
    for node in list(tape.graph.nodes):
        stack_instead_of_cat(tape, node)
    EachStep(tape, root).rewrite()
    for node in list(tape.graph.nodes):
        value = picked_from_unbound(node)
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


def picked_from_unbound(node: fx.Node) -> fx.Node | None:
    """Returns the value that an index picks out of a stack that ``unbind`` took apart."""
    if node.target is not operator.getitem or not isinstance(node.args[0], fx.Node):
        return None
    source, index = node.args[0], node.args[1]
    if source.target not in ("unbind", torch.unbind) or not isinstance(source.args[0], fx.Node):
        return None
    items = stacked_items(source.args[0])
    dim = source.args[1] if len(source.args) > 1 else source.kwargs.get("dim", 0)
    if items is None or dim != stacking_axis(source.args[0]):
        return None
    return items[index] if type(index) is int and -len(items) <= index < len(items) else None
