"""The way back from the user's loss: anchors that autograd sums the learning signals into.

An anchor is a zero that is added to a value that the user can read. Whatever loss the user writes, autograd hands the
learning signals of all anchors to the one backward function of the sequence, which is called once.
"""

from __future__ import annotations

import itertools
import weakref
from collections.abc import Callable, Sequence
from typing import Any

import torch
from torch import Tensor
from torch.autograd.function import once_differentiable

from tracecompile.program import StepProgram

Backward = Callable[[list[Tensor | None]], list[Tensor | None]]
"""Maps learning signals, one per anchor, to gradients, one per differentiable input."""

Taker = Callable[[int, int, Tensor], bool]
"""Takes (port, step, learning signal) if the step is still the latest."""


class AnchorFunction(torch.autograd.Function):
    """Makes the anchors of one sequence; its backward is the whole backward pass."""

    @staticmethod
    def forward(
        ctx: Any, backward: Backward, shapes: list[tuple[tuple[int, ...], torch.dtype, torch.device]], *inputs: Tensor
    ) -> Any:
        """Returns one zero tensor per shape; ``inputs`` are what gradients are wanted for."""
        ctx.run = backward
        ctx.set_materialize_grads(False)
        return tuple(torch.zeros((), dtype=dtype, device=device).expand(shape) for shape, dtype, device in shapes)

    @staticmethod
    @once_differentiable
    def backward(ctx: Any, *signals: Tensor | None) -> Any:
        """Returns the gradients of the inputs."""
        return (None, None, *ctx.run(list(signals)))


class LatestFunction(torch.autograd.Function):
    """Takes out of a bin's anchor the learning signal of the latest step, if this step is still the latest then."""

    @staticmethod
    def forward(ctx: Any, anchor: Tensor, taker: weakref.WeakMethod[Taker], port: int, step: int) -> Tensor:
        """Returns the anchor for the step ``step``."""
        ctx.taker, ctx.port, ctx.step = taker, port, step
        return anchor.view_as(anchor)

    @staticmethod
    @once_differentiable
    def backward(ctx: Any, signal: Tensor) -> Any:
        """Leaves the signal with the taker, or lets it pass to the anchor of the bin."""
        take = ctx.taker()
        taken = take is not None and take(ctx.port, ctx.step, signal)
        return (torch.zeros_like(signal) if taken else signal), None, None, None


def with_anchors(values: Sequence[Tensor], anchors: Sequence[Tensor | None]) -> list[Tensor]:
    """Adds to each of some values its anchor."""
    return [value if anchor is None else value + anchor for value, anchor in zip(values, anchors, strict=True)]


def of_chosen(program: StepProgram, anchors: Sequence[Tensor | None]) -> list[Tensor | None]:
    """Adds up the anchors of the steps that a sum takes, as the sum does with the values."""
    found = []
    for anchor, output in zip(anchors, program.outputs, strict=True):
        if anchor is not None and output.chosen is not None:
            chosen = output.chosen.of(anchor.shape[0])
            # A sum of no step is the zero that it starts from.
            anchor = anchor[_as_slice(chosen)].sum(0) if chosen else None
        found.append(anchor)
    return found


def _as_slice(steps: Sequence[int]) -> slice | list[int]:
    """Returns numbers of steps as a slice, where they are at one distance: of a slice autograd keeps nothing."""
    distance = steps[1] - steps[0] if len(steps) > 1 else 1
    even = distance > 0 and all(after - before == distance for before, after in itertools.pairwise(steps))
    return slice(steps[0], steps[-1] + 1, distance) if even else list(steps)
