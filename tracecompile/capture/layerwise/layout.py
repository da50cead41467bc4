"""Where the time steps of a tensor are."""

from __future__ import annotations

from collections.abc import Iterator
from dataclasses import dataclass
from typing import Literal

from torch import Tensor

Merged = Literal["", "time first", "batch first"]
Form = Literal["item", "kept"]
"""What belongs to one step: without the time axis, or with that axis at length 1."""


@dataclass(frozen=True)
class Layout:
    """The time axis of a whole sequence.

    Attributes:
        axis: Where it is.
        steps: Number of time steps.
        merged: Whether the axis is that of time and batch together, and which of the two comes first.
    """

    axis: int
    steps: int
    merged: Merged = ""

    def item(self, whole: Tensor, step: int) -> Tensor:
        """Returns what belongs to one step, without the time axis."""
        if not self.merged:
            return whole.select(self.axis, step)
        rows = whole.shape[self.axis] // self.steps
        sizes = (self.steps, rows) if self.merged == "time first" else (rows, self.steps)
        apart: Tensor = whole.unflatten(self.axis, sizes)
        return apart.select(self.stacking_axis, step)

    def kept(self, whole: Tensor, step: int) -> Tensor:
        """Returns what belongs to one step, with the time axis at length 1 where it is an axis of its own."""
        return self.item(whole, step) if self.merged else whole.narrow(self.axis, step, 1)

    @property
    def stacking_axis(self) -> int:
        """Along which axis items are stacked, to be flattened with the batch where both are merged."""
        return self.axis + (self.merged == "batch first")

    def sizes(self, shape: tuple[int, ...]) -> tuple[int, ...]:
        """Returns the shape of one step, with the time axis."""
        return tuple(size // self.steps if axis == self.axis else size for axis, size in enumerate(shape))


def layout_of_axis(shape: tuple[int, ...], axis: int | None, steps: int) -> Layout | None:
    """Returns the layout of a tensor that has its time steps in an axis; None where it has none there."""
    if axis is None or not -len(shape) <= axis < len(shape):
        return None
    size = shape[axis]
    return None if size == 0 or size % steps else Layout(axis, steps, "" if size == steps else "time first")


def fitting_layouts(whole: tuple[int, ...], part: tuple[int, ...], steps: int, keep: bool) -> Iterator[Layout]:
    """Yields the layouts in which a tensor may consist of parts of some shape.

    Args:
        keep: Parts have the time axis with length 1; otherwise they lack it.
    """
    for axis, size in enumerate(whole):
        rest = (*whole[:axis], *([1] if keep else []), *whole[axis + 1 :])
        if size == steps and rest == part:
            yield Layout(axis, steps)
    if keep or len(whole) != len(part):
        return
    for axis, size in enumerate(whole):
        if size == steps * part[axis] and (*whole[:axis], part[axis], *whole[axis + 1 :]) == part:
            yield Layout(axis, steps, "time first")
            yield Layout(axis, steps, "batch first")
