"""The way back from the user's loss: anchors that autograd sums the learning signals into.

One anchor per value that the user can read, with one slot per time bin, all zeros. Each step's real value has its bin's
slot added to it, so whatever loss the user writes, autograd adds up the learning signals of all steps and calls the one
backward function of the sequence once.
"""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

import torch
from torch import Tensor
from torch.autograd.function import once_differentiable

Backward = Callable[[list[Tensor | None]], list[Tensor | None]]
"""Maps learning signals, one per anchor, to gradients, one per differentiable input."""


class AnchorFunction(torch.autograd.Function):
    """Makes the anchors of one sequence; its backward is the whole backward pass."""

    @staticmethod
    def forward(
        ctx: Any, backward: Backward, shapes: list[tuple[tuple[int, ...], torch.dtype, torch.device]], *inputs: Tensor
    ) -> Any:
        """Returns one zero tensor per shape; ``inputs`` are what gradients are wanted for."""
        ctx.run = backward
        ctx.set_materialize_grads(False)
        return tuple(torch.zeros(1, dtype=dtype, device=device).expand(shape) for shape, dtype, device in shapes)

    @staticmethod
    @once_differentiable
    def backward(ctx: Any, *signals: Tensor | None) -> Any:
        """Returns the gradients of the inputs."""
        return (None, None, *ctx.run(list(signals)))


class SpreadFunction(torch.autograd.Function):
    """Repeats each bin's slot over the steps of the bin; keeps nothing for backward but the widths."""

    @staticmethod
    def forward(ctx: Any, anchor: Tensor, widths: tuple[int, ...]) -> Tensor:
        """Returns (steps, *shape) from (bins, *shape)."""
        ctx.widths = widths
        return anchor[:1].expand(sum(widths), *anchor.shape[1:])

    @staticmethod
    @once_differentiable
    def backward(ctx: Any, signal: Tensor) -> Any:
        """Sums the signal over the steps of each bin."""
        return torch.stack([part.sum(0) for part in signal.split(list(ctx.widths))]), None


def spread(anchor: Tensor, widths: tuple[int, ...]) -> Tensor:
    """Returns zeros of shape (steps, *shape) whose learning signal flows to the slot of each step's bin."""
    spread_anchor: Tensor = SpreadFunction.apply(anchor, widths)
    return spread_anchor


def total(anchor: Tensor, widths: tuple[int, ...]) -> Tensor:
    """Returns a zero of one step's shape whose learning signal reaches every step."""
    parts = [anchor[index] * width for index, width in enumerate(widths)]
    return torch.stack(parts).sum(0) if len(parts) > 1 else parts[0]
