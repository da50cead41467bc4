"""Gradients of inputs: what was found of a bin's mean, shared among its steps."""

from __future__ import annotations

from collections.abc import Mapping

import torch
from torch import Tensor

from tracecompile.runtime.bins import Bins


def of_type(gradient: Tensor | None, value: Tensor) -> Tensor | None:
    """Returns a gradient in the type of the value that it is of."""
    return None if gradient is None else gradient.to(value.dtype)


def of_step(found: Mapping[str, list[Tensor | None]], bins: Bins, name: str, step: int) -> Tensor | None:
    """Returns the gradient of an input in one step: its share of that of the bin's mean input."""
    index = bins.of(step)
    row = found[name][index] if name in found else None
    return None if row is None else row / bins.widths[index]


def over_time(rows: list[Tensor | None] | None, bins: Bins, value: Tensor, dim: int) -> Tensor | None:
    """Shares the gradient of each bin's mean input among the steps of the bin."""
    if rows is None:
        return None
    gradient = torch.zeros_like(value)
    for index, (row, width) in enumerate(zip(rows, bins.widths, strict=True)):
        if row is not None:
            gradient.narrow(dim, bins.edges[index], width).add_((row / width).unsqueeze(dim))
    return gradient
