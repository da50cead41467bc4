"""The way back from the user's loss: anchors that autograd sums the learning signals into.

An anchor is a zero that is added to a value that the user can read. Whatever loss the user writes, autograd hands the
learning signals of all anchors to the one backward function of the sequence, which is called once.
"""

from __future__ import annotations

import weakref
from collections.abc import Callable
from typing import TYPE_CHECKING, Any

import torch
from torch import Tensor
from torch.autograd.function import once_differentiable

if TYPE_CHECKING:
    from tracecompile.runtime.window import Window

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


class LatestFunction(torch.autograd.Function):
    """Takes out of a bin's anchor the learning signal of the latest step, if this step is still the latest then."""

    @staticmethod
    def forward(ctx: Any, anchor: Tensor, window: weakref.ref[Window], port: int, step: int) -> Tensor:
        """Returns the anchor for the step ``step``."""
        ctx.window, ctx.port, ctx.step = window, port, step
        return anchor.view_as(anchor)

    @staticmethod
    @once_differentiable
    def backward(ctx: Any, signal: Tensor) -> Any:
        """Leaves the signal with the window, or lets it pass to the anchor of the bin."""
        window = ctx.window()
        taken = window is not None and window.take_latest(ctx.port, ctx.step, signal)
        return (torch.zeros_like(signal) if taken else signal), None, None, None
