"""Running sums along time: work that mixes steps, and that a step can do all the same, from what the last one had.

The sum is kept in the type in which torch adds it up: with 32 bits that is one of 64 bits, rounded at every step.
"""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any

import torch
from torch import Tensor, fx

from tracecompile.capture.layerwise.layout import Layout
from tracecompile.capture.layerwise.recipe import Recipe

_WIDER = {torch.float32: torch.float64, torch.float16: torch.float32, torch.bfloat16: torch.float32}


def running_sum(node: fx.Node, layouts: Mapping[fx.Node, Layout]) -> Recipe | None:
    """Returns the recipe of a node that adds up along time; None where it does something else.

    Args:
        node: Any node that computes a tensor.
        layouts: Of those of its operands that are whole sequences.
    """
    source = node.args[0] if node.args else node.kwargs.get("input")
    if node.target not in (torch.cumsum, "cumsum") or not isinstance(source, fx.Node) or source not in layouts:
        return None
    layout, rank = layouts[source], source.meta["val"].dim()
    axis: Any = node.args[1] if len(node.args) > 1 else node.kwargs.get("dim", node.kwargs.get("axis"))
    if layout.merged or not isinstance(axis, int) or axis % rank != layout.axis:
        return None
    return Recipe(layout, arguments=((source,), {}), running=True)


def casts(source: Tensor, result: Tensor) -> tuple[torch.dtype, ...]:
    """Returns the types that what is added goes through, that of the sum last."""
    wide = _WIDER.get(result.dtype, result.dtype) if not result.is_cuda else result.dtype
    return tuple(dtype for dtype, now in ((result.dtype, source.dtype), (wide, result.dtype)) if dtype != now)


def rounds_alike(value: Tensor) -> bool:
    """Tells whether a sum of one step after the other is torch's own to the bit: other devices add up in pieces."""
    return not value.is_floating_point() or value.device.type == "cpu"
