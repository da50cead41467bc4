"""Stacks of the values of single steps, and what takes them apart again."""

from __future__ import annotations

import operator
from collections.abc import Iterator
from dataclasses import dataclass
from typing import Any

import torch
from torch import fx

from tracecompile.capture.tracing.functionalize import set_item


@dataclass(frozen=True)
class Steps:
    """A tensor as the values of single steps.

    Attributes:
        items: One node a step.
        axis: Where the time axis is.
        merged: Whether time and batch, the first two axes, are one.
    """

    items: tuple[fx.Node, ...]
    axis: int
    merged: bool = False

    def together(self, values: list[torch.Tensor]) -> torch.Tensor:
        """Returns the values of all steps as the tensor holds them."""
        whole = torch.stack(values, self.axis)
        return whole.flatten(0, 1) if self.merged else whole


def called(node: fx.Node) -> str:
    """Returns the name of the function or method that a node calls."""
    return node.target if isinstance(node.target, str) else getattr(node.target, "__name__", "")


def stacked_items(node: Any) -> list[fx.Node] | None:
    """Returns what a node stacks along a new axis."""
    if not isinstance(node, fx.Node) or node.target is not torch.stack:
        return None
    items = node.args[0]
    return list(items) if isinstance(items, (list, tuple)) else None  # type: ignore[arg-type]


def written_items(node: fx.Node) -> tuple[list[fx.Node], int] | None:
    """Returns what was written into every slice of a tensor, and along which axis, where the last write is a node."""
    found: dict[int, fx.Node] = {}
    axis, current = None, node
    while current.target is set_item:
        index, value = _index(current), current.args[2]
        places = [place for place, item in enumerate(index) if type(item) is int]
        if len(places) != 1 or not isinstance(value, fx.Node) or axis not in (None, places[0]):
            return None
        axis = places[0]
        if any(item != slice(None) for item in _others(index, axis)) or Ellipsis in index[:axis]:
            return None
        found.setdefault(index[axis], value)
        assert isinstance(current.args[0], fx.Node)
        current = current.args[0]
    if axis is None or not isinstance(current.meta["val"], torch.Tensor):
        return None
    whole = current.meta["val"]
    part = whole.select(axis, 0)
    fits = all(value.meta["val"].shape == part.shape for value in found.values())
    same = all(value.meta["val"].dtype == part.dtype for value in found.values())
    if not (fits and same) or sorted(found) != list(range(whole.shape[axis])):
        return None
    return [found[step] for step in sorted(found)], axis


def steps_of(node: fx.Node) -> Steps | None:
    """Returns a tensor that was put together from the values of single steps as those values."""
    items = stacked_items(node)
    if items is not None:
        return Steps(tuple(items), stacking_axis(node))
    written = written_items(node)
    return None if written is None else Steps(tuple(written[0]), written[1])


def stacking_axis(node: fx.Node) -> int:
    """Returns the axis along which a node stacks."""
    dim: Any = node.args[1] if len(node.args) > 1 else node.kwargs.get("dim", 0)
    rank: int = node.meta["val"].dim()
    return int(dim) % rank


def picks(node: fx.Node) -> bool:
    """Tells whether a node takes parts out of a tensor, one at a time."""
    if node.target in ("unbind", torch.unbind, "select", torch.select):
        return True
    if node.target is not operator.getitem or not isinstance(node.args[0], fx.Node):
        return False
    return isinstance(node.args[0].meta["val"], torch.Tensor) and any(type(item) is int for item in _index(node))


def picked_item(node: fx.Node, source: fx.Node, steps: Steps) -> fx.Node | None:
    """Returns the value of one step that an index picks, if it takes everything along the other axes."""
    if steps.merged or node.args[0] is not source:
        return None
    if node.target is operator.getitem:
        index = _index(node)
        if len(index) <= steps.axis or any(item != slice(None) for item in _others(index, steps.axis)):
            return None
        number = index[steps.axis]
    elif node.target in ("select", torch.select) and len(node.args) == 3 and node.args[1] == steps.axis:
        number = node.args[2]
    else:
        return None
    count = len(steps.items)
    return steps.items[number] if type(number) is int and -count <= number < count else None


def _others(index: tuple[Any, ...], axis: int) -> Iterator[Any]:
    return (item for position, item in enumerate(index) if position != axis and item is not Ellipsis)


def _index(node: fx.Node) -> tuple[Any, ...]:
    index = node.args[1]
    return index if isinstance(index, tuple) else (index,)


def flattened(node: fx.Node) -> tuple[int, int]:
    """Returns the first and the last axis that a node flattens."""
    start = node.args[1] if len(node.args) > 1 else node.kwargs.get("start_dim", 0)
    end = node.args[2] if len(node.args) > 2 else node.kwargs.get("end_dim", -1)
    return int(start), int(end)  # type: ignore[arg-type]
