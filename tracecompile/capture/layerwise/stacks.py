"""Whole sequences that are put together from the values of single steps."""

from __future__ import annotations

from typing import Any

import torch
from torch import fx

from tracecompile.capture.layerwise.layout import Form, Layout

Put = tuple[Layout, tuple[fx.Node, ...], Form]


def stacked(node: fx.Node, steps: int) -> Put | None:
    """Returns the layout of a tensor that consists of one value per step, those values, and whether they have its axis.

    Args:
        node: A node that stacks or concatenates them.
        steps: How many there have to be.
    """
    if node.target not in (torch.stack, torch.cat, torch.concat, torch.concatenate) or not node.args:
        return None
    items: Any = node.args[0]
    if not isinstance(items, (list, tuple)) or len(items) != steps or not all(isinstance(i, fx.Node) for i in items):
        return None
    axis: Any = node.args[1] if len(node.args) > 1 else node.kwargs.get("dim", node.kwargs.get("axis", 0))
    if not isinstance(axis, int) or len({item.meta["val"].shape for item in items}) != 1:
        return None
    axis %= node.meta["val"].dim()
    if node.target is torch.stack:
        return Layout(axis, steps), tuple(items), "item"
    if items[0].meta["val"].shape[axis] > 1:
        return Layout(axis, steps, "time first"), tuple(items), "item"
    inner = [_without_axis(item, axis) for item in items]
    bare = [item for item in inner if item is not None]
    return (
        (Layout(axis, steps), tuple(bare), "item")
        if len(bare) == steps
        else (Layout(axis, steps), tuple(items), "kept")
    )


def _without_axis(item: fx.Node, axis: int) -> fx.Node | None:
    """Returns what a value was before it was given the time axis with length 1."""
    if item.target not in ("unsqueeze", torch.unsqueeze) or len(item.args) != 2:
        return None
    given: Any = item.args[1]
    source = item.args[0]
    same = isinstance(given, int) and given % item.meta["val"].dim() == axis
    return source if same and isinstance(source, fx.Node) else None
