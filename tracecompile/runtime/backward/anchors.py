"""The way back from the user's loss: anchors that autograd sums the learning signals into.

An anchor is a zero that is added to a value that the user can read. Whatever loss the user writes, autograd hands the
learning signals of all anchors to the one backward function of the window, once for every backward pass. The anchors of
a sequence are results of that function. A stream makes one for every step, which all hang from one root.
"""

from __future__ import annotations

import itertools
from collections.abc import Callable, Sequence
from typing import Any

import torch
from torch import Tensor

from tracecompile.program import StepProgram
from tracecompile.runtime.backward.once import applied, first_order
from tracecompile.runtime.bins import Clock

Backward = Callable[[list[Tensor | None]], list[Tensor | None]]
"""Maps learning signals, one per anchor, to gradients, one per differentiable input."""

Shape = tuple[tuple[int, ...], torch.dtype, torch.device]

Place = tuple[int, int]
"""Where signals on a step of a stream belong: its slot, and its number, counted from 1."""

LATEST = -1
"""The slot of signals on the latest step of a stream."""


class AnchorFunction(torch.autograd.Function):
    """Makes the anchors of one window; its backward is the whole backward pass."""

    @staticmethod
    def forward(ctx: Any, backward: Backward, device: torch.device | None, shapes: list[Shape], *inputs: Tensor) -> Any:
        """Returns a root, and one zero tensor per shape; ``inputs`` are what gradients are wanted for."""
        ctx.run = backward
        ctx.set_materialize_grads(False)
        root = torch.zeros((), device=device)
        ctx.save_for_backward(root)
        return root, *(torch.zeros((), dtype=dtype, device=device).expand(shape) for shape, dtype, device in shapes)

    @staticmethod
    def backward(ctx: Any, from_root: Tensor | None, *signals: Tensor | None) -> Any:
        """Returns the gradients of the inputs."""
        (root,) = ctx.saved_tensors
        with torch.no_grad():
            found = ctx.run([None if signal is None else signal.detach() for signal in signals])
        return None, None, None, *first_order(root, found)


def anchored(
    backward: Backward, kept: object, device: torch.device | None, shapes: list[Shape], inputs: Sequence[Tensor]
) -> tuple[Tensor, list[Tensor]]:
    """Returns the root of a window and an anchor per shape.

    Args:
        backward: Is run once for every backward pass.
        kept: Lives as long as autograd keeps the graph: until a backward pass that does not retain it.
        device: Of the root.
        shapes: Of the anchors.
        inputs: What gradients are wanted for.
    """
    root, *anchors = applied(AnchorFunction, kept, backward, device, shapes, *inputs)
    return root, anchors


class Inbox:
    """The learning signals on the steps of a stream, on their way through a backward pass."""

    def __init__(self, clock: Clock, apart: bool) -> None:
        """Is empty.

        Args:
            clock: Of the stream.
            apart: Whether the signals on the latest step are kept apart from those on the other steps of its bin.
        """
        self.clock, self.apart = clock, apart
        self._found: dict[int, dict[tuple[int, int], Tensor]] = {}

    def put(self, port: int, slot: int, step: int, signal: Tensor) -> None:
        """Adds the signal of one step to those on its port and slot."""
        # By pass: what is left of one that has failed belongs to no other.
        found = self._found.setdefault(torch._C._current_graph_task_id(), {})
        key = (port, LATEST if self.apart and step == self.clock.steps else slot)
        found[key] = found[key] + signal if key in found else signal

    def take(self) -> dict[tuple[int, int], Tensor]:
        """Returns the signals of the running pass by (port, slot)."""
        return self._found.pop(torch._C._current_graph_task_id(), {})


class StepFunction(torch.autograd.Function):
    """Makes the anchor of one step of a stream."""

    @staticmethod
    def forward(ctx: Any, root: Tensor, inbox: Inbox, port: int, slot: int, step: int, value: Tensor) -> Tensor:
        """Returns a zero of the shape of the step's value."""
        ctx.inbox, ctx.place = inbox, (port, slot, step)
        return value.new_zeros(()).expand(value.shape)

    @staticmethod
    def backward(ctx: Any, signal: Tensor) -> Any:
        """Leaves the signal in the inbox, and lets the root know that there is one."""
        ctx.inbox.put(*ctx.place, signal.detach())
        return signal.new_zeros(()).detach(), None, None, None, None, None


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
