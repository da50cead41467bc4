"""Recognises what belongs to the t-th step of a sequence: slices that the loop reads one after the other."""

from __future__ import annotations

import operator
from collections.abc import Iterator
from dataclasses import dataclass
from typing import Any

import torch
from torch import fx

from tracecompile.capture.loops.loop_body import Loop, Site
from tracecompile.operations import operation_of


@dataclass(frozen=True)
class Stream:
    """A sequence that the loop takes slice by slice.

    Attributes:
        sequence: The whole, a node before the loop.
        dim: Its time axis.
        first: The slice that the first step takes, counted from the end where the loop goes backwards.
        backwards: Whether the loop goes from the end to the beginning.
        stride: How far each step goes on.
    """

    sequence: fx.Node
    dim: int
    first: int = 0
    backwards: bool = False
    stride: int = 1

    def taken(self, step: int) -> torch.Tensor:
        """Returns what a step took in the trace."""
        value: torch.Tensor = self.sequence.meta["val"]
        number = self.first + self.stride * step
        return value.select(self.dim, value.shape[self.dim] - 1 - number if self.backwards else number)

    def index(self, steps: int, fixed: bool) -> tuple[slice, ...] | None:
        """Returns what cuts the sequence (turned round where the loop goes backwards) to the steps of the loop.

        Args:
            steps: Of the loop in the trace.
            fixed: Whether the loop has so many steps however long the sequence is.

        Returns:
            The index; None where the loop takes all of it.
        """
        end = self.first + self.stride * (steps - 1) + 1
        left = self.sequence.meta["val"].shape[self.dim] - end
        if not self.first and not left and self.stride == 1:
            return None
        stop = end if fixed else -left or None
        return (*(slice(None),) * self.dim, slice(self.first, stop, None if self.stride == 1 else self.stride))


@dataclass(frozen=True)
class Slice:
    """What a site takes of a stream in its step.

    Attributes:
        stream: The stream.
        keep: Whether the slice keeps the time axis with length 1.
        rest: What is taken of the slice along its other axes; () for all of it.
    """

    stream: Stream
    keep: bool = False
    rest: tuple[Any, ...] = ()


def slice_at_every_step(loop: Loop, site: Site) -> Slice | None:
    """Returns the slice that a site takes, where it goes along a sequence that the loop does not make."""
    rows = {step: node for step in range(loop.steps) if (node := loop.at(site, step)) is not None}
    for found in picked(loop.template(site)):
        if found.sequence in loop.when:
            continue
        column = {step: _same_pick(node, found) for step, node in rows.items()}
        if None in column.values():
            continue
        numbers: dict[int, int] = {step: number for step, number in column.items() if number is not None}
        course = _course(loop, numbers, found.sequence.meta["val"].shape[found.dim])
        if course is not None:
            return Slice(Stream(found.sequence, found.dim, *course), found.keep, found.rest)
    return None


def _course(loop: Loop, numbers: dict[int, int], length: int) -> tuple[int, bool, int] | None:
    """Returns which slice the first step takes, whether the loop goes backwards, and how far each step goes on.

    Args:
        loop: The loop.
        numbers: Number of the slice by step, as it is written.
        length: How many slices there are.

    Returns:
        None if the slices do not move evenly.
    """
    if len(numbers) < 2:
        return (next(iter(numbers.values())), False, 1) if loop.steps == 1 else None
    (step, number), (later, other) = list(numbers.items())[:2]
    stride, rest = divmod(other - number, later - step)
    start = number - stride * step
    if rest or not stride or any(found != start + stride * step for step, found in numbers.items()):
        return None
    if min(numbers.values()) < 0 <= max(numbers.values()):
        return None
    backwards = stride < 0
    first = (-1 if start < 0 else length - 1) - start if backwards else start + (length if start < 0 else 0)
    end = first + abs(stride) * (loop.steps - 1)
    return (first, backwards, abs(stride)) if first >= 0 and end < length else None


@dataclass(frozen=True)
class Pick:
    """One slice of a sequence.

    Attributes:
        sequence: The whole.
        dim: The axis along which it is a slice.
        number: Which one, as it is written.
        keep: Whether that axis is kept with length 1.
        rest: What is taken of the slice along its other axes; () for all of it.
    """

    sequence: fx.Node
    dim: int
    number: int
    keep: bool = False
    rest: tuple[Any, ...] = ()


def _same_pick(node: fx.Node, wanted: Pick) -> int | None:
    """Returns which slice a node takes, where it takes it like another one."""
    for found in picked(node):
        same_axis = (found.sequence, found.dim, found.keep) == (wanted.sequence, wanted.dim, wanted.keep)
        if same_axis and _same_index(found.rest, wanted.rest):
            return found.number
    return None


def _same_index(one: tuple[Any, ...], other: tuple[Any, ...]) -> bool:
    pairs = zip(one, other, strict=False)
    return len(one) == len(other) and all(a is b or (type(a) is type(b) and a == b) for a, b in pairs)


def picked(node: fx.Node) -> Iterator[Pick]:
    """Yields the ways in which a node is a slice of a sequence, one for every axis along which it may be."""
    source = node.args[0] if node.args else None
    if not isinstance(source, fx.Node):
        return
    value = source.meta.get("val")
    if node.target is operator.getitem and isinstance(value, (tuple, list)):
        yield from _unbound(source, node.args[1])
    elif node.target is operator.getitem and isinstance(value, torch.Tensor):
        yield from _indexed(source, node.args[1], value.dim())
    elif operation_of(node).name in ("select", "narrow") and isinstance(value, torch.Tensor):
        dim, number, *length = node.args[1:]
        if type(dim) is int and type(number) is int and (not length or length == [1]):
            yield Pick(source, dim % value.dim(), number, keep=bool(length))


def _indexed(source: fx.Node, index: Any, dimensions: int) -> Iterator[Pick]:
    items = index if isinstance(index, tuple) else (index,)
    if any(isinstance(item, (bool, type(None), list, fx.Node)) for item in items):
        return  # other axes than those of the sequence
    spread = Ellipsis in [item for item in items if not isinstance(item, (fx.Node, slice))]
    before = next((place for place, item in enumerate(items) if item is Ellipsis), len(items))
    gap = dimensions - (len(items) - 1) if spread else 0
    for place, item in enumerate(items):
        dim = place if place < before else place + gap - 1
        if type(item) is int:
            number, keep = item, False
        elif isinstance(item, slice) and _is_single(item):
            number, keep = item.start, True
        else:
            continue
        rest = (*items[:place], *((slice(None),) if keep else ()), *items[place + 1 :])
        yield Pick(source, dim, number, keep, () if all(_takes_all(part) for part in rest) else rest)


def _is_single(item: slice) -> bool:
    return type(item.start) is int and type(item.stop) is int and item.stop == item.start + 1 and item.step is None


def _takes_all(item: Any) -> bool:
    return item is Ellipsis or (isinstance(item, slice) and item == slice(None))


def _unbound(source: fx.Node, number: Any) -> Iterator[Pick]:
    """Yields the slice out of ``unbind``, or ``split`` into single steps."""
    name = operation_of(source).name
    whole = source.args[0] if source.args else None
    if name not in ("unbind", "split", "chunk") or not isinstance(whole, fx.Node) or type(number) is not int:
        return
    place = 1 if name == "unbind" else 2
    dim: Any = source.args[place] if len(source.args) > place else source.kwargs.get("dim", 0)
    dim = dim % whole.meta["val"].dim()
    if name == "unbind" or len(source.meta["val"]) == whole.meta["val"].shape[dim]:
        yield Pick(whole, dim, number, keep=name != "unbind")
