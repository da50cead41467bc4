"""Inputs of other sizes, made from the example: other steps, other samples, the same kind of numbers."""

from __future__ import annotations

from collections.abc import Collection
from dataclasses import dataclass, field
from typing import Any

import torch
from torch import Tensor
from torch.utils import _pytree as pytree

from tracecompile.capture.loops.lengths import TimeSource
from tracecompile.capture.loops.resizing import first_tensor
from tracecompile.program import StepProgram

Arguments = tuple[tuple[Any, ...], dict[str, Any]]


@dataclass(frozen=True)
class Size:
    """Which sizes of the example are changed.

    Attributes:
        steps: Number of time steps, None to leave it.
        batch: Number of samples, None to leave it.
        axis: Axis of the samples in the first tensor argument.
    """

    steps: int | None = None
    batch: int | None = None
    axis: int | None = None

    def words(self) -> str:
        """Says what is changed."""
        parts = []
        if self.steps is not None:
            parts.append(f"{self.steps} time step{'s' * (self.steps != 1)}")
        if self.batch is not None:
            parts.append(f"{self.batch} sample{'s' * (self.batch != 1)}")
        return " and ".join(parts) or "the example's sizes"


def batch_axes(program: StepProgram, source: TimeSource, args: tuple[Any, ...], kwargs: dict[str, Any]) -> list[int]:
    """Returns the axes of the first tensor argument that may be that of the samples, the likeliest first."""
    first, time = first_tensor(args, kwargs), source.axis
    if first is None:
        return []
    likely = [1] if time == 0 else [0]
    if program.length is not None and not program.length_bound:
        likely += [1 - likely[0]]  # only the model knows where its own number of steps is
    return [axis for axis in likely if axis < first.dim()]


@dataclass
class Varied:
    """Makes inputs of other sizes out of an example.

    Attributes:
        source: What says how many steps there are.
        keep: Positions of the leaves that are states: other samples, but no other numbers.
    """

    source: TimeSource
    keep: Collection[int] = ()
    generator: torch.Generator = field(default_factory=lambda: torch.Generator().manual_seed(0))

    def make(self, args: tuple[Any, ...], kwargs: dict[str, Any], size: Size, seed: int = 0) -> Arguments:
        """Returns the arguments of a call of another size.

        Every (step, sample) of a tensor is one of the example's, drawn anew; where its numbers are not whole, each is
        drawn by itself. So values, their range and their kind are the example's, and no two samples are the same.
        """
        self.generator.manual_seed(seed)
        leaves, spec = pytree.tree_flatten((args, kwargs))
        first = first_tensor(args, kwargs)
        if self.source.number is not None and size.steps is not None:
            leaves[self.source.number] = size.steps
        made = [
            self._tensor(leaf, first, size, position in self.keep)
            if isinstance(leaf, Tensor) and first is not None
            else leaf
            for position, leaf in enumerate(leaves)
        ]
        again: Arguments = pytree.tree_unflatten(made, spec)
        return again

    def _tensor(self, leaf: Tensor, first: Tensor, size: Size, is_state: bool) -> Tensor:
        leaf = leaf.detach().clone()
        time, batch = self._axes(leaf, first, size)
        axes = [axis for axis in (time, batch) if axis is not None]
        if not axes or leaf.numel() == 0:
            return leaf
        wanted = [leaf.shape[axis] for axis in axes]
        if time is not None and size.steps is not None:
            wanted[0] = size.steps
        if batch is not None and size.batch is not None:
            wanted[-1] = size.batch
        front = leaf.movedim(axes, list(range(len(axes))))
        rest = front.shape[len(axes) :]
        rows = front.reshape(-1, max(rest.numel(), 1))
        drawn = self._drawn(rows, torch.Size(wanted).numel(), is_state)
        return drawn.reshape(*wanted, *rest).movedim(list(range(len(axes))), axes).contiguous()

    def _axes(self, leaf: Tensor, first: Tensor, size: Size) -> tuple[int | None, int | None]:
        """Returns the axes of time and samples in a tensor that has them."""
        time = self.source.axis
        if time is not None and not (leaf.dim() > time and leaf.shape[time] == first.shape[time]):
            time = None
        if size.axis is None:
            return time, None
        samples = first.shape[size.axis]
        likely = [size.axis] if leaf.dim() == first.dim() else []
        fitting = [axis for axis in (*likely, *range(leaf.dim())) if axis != time and leaf.shape[axis] == samples]
        return time, fitting[0] if fitting else None

    def _drawn(self, rows: Tensor, count: int, is_state: bool) -> Tensor:
        have = len(rows)
        picked = torch.randint(have, (count,), generator=self.generator).to(rows.device)
        found = rows[picked]
        if is_state:
            return found
        whole = not rows.is_floating_point() or bool((rows == rows.round()).all())
        if have == 1:
            shifts = torch.arange(count) % rows.shape[1]
            return torch.stack([row.roll(int(shift)) for row, shift in zip(found, shifts, strict=True)])
        if whole:
            return found
        each = torch.randint(have, (count, rows.shape[1]), generator=self.generator).to(rows.device)
        return rows.gather(0, each)
