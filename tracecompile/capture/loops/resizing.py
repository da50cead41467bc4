"""What says how many time steps an example has, and the example at another length."""

from __future__ import annotations

from typing import Any

import torch
from torch.utils import _pytree as pytree

from tracecompile.capture.loops.lengths import TimeSource


def time_sources(args: tuple[Any, ...], kwargs: dict[str, Any]) -> list[TimeSource]:
    """Returns what may say how many steps there are, the likeliest first."""
    first = first_tensor(args, kwargs)
    axes = range(0 if first is None else first.dim())
    numbers = [
        (position, leaf)
        for position, leaf in enumerate(pytree.tree_leaves((args, kwargs)))
        if isinstance(leaf, int) and not isinstance(leaf, bool) and leaf > 0
    ]
    both = [
        TimeSource(axis, position)
        for position, leaf in numbers
        for axis in axes
        if first is not None and first.shape[axis] == leaf
    ]
    return [*both, *(TimeSource(axis) for axis in axes), *(TimeSource(None, position) for position, _ in numbers)]


def first_tensor(args: tuple[Any, ...], kwargs: dict[str, Any]) -> torch.Tensor | None:
    """Returns the first tensor among the arguments."""
    return next((leaf for leaf in pytree.tree_leaves((args, kwargs)) if isinstance(leaf, torch.Tensor)), None)


def resized(
    args: tuple[Any, ...], kwargs: dict[str, Any], source: TimeSource, length: int
) -> tuple[tuple[Any, ...], dict[str, Any]]:
    """Cuts or repeats the example to a length along an axis, in every tensor that has the first one's length there."""
    if source.number is not None:
        leaves, spec = pytree.tree_flatten((args, kwargs))
        leaves[source.number] = length
        args, kwargs = pytree.tree_unflatten(leaves, spec)
    first, axis = first_tensor(args, kwargs), source.axis
    if first is None or axis is None:
        return args, kwargs
    present = first.shape[axis]

    def change(leaf: Any) -> Any:
        if isinstance(leaf, torch.Tensor) and leaf.dim() > axis and leaf.shape[axis] == present and present:
            return leaf.detach().index_select(axis, torch.arange(length, device=leaf.device) % present)
        return leaf

    changed: tuple[tuple[Any, ...], dict[str, Any]] = pytree.tree_map(change, (args, kwargs))
    return changed


def length_of(args: tuple[Any, ...], kwargs: dict[str, Any], source: TimeSource) -> int:
    """Returns the number of steps of an example."""
    if source.number is not None:
        return int(pytree.tree_leaves((args, kwargs))[source.number])
    first = first_tensor(args, kwargs)
    return 0 if first is None or source.axis is None else int(first.shape[source.axis])
