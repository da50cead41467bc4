"""Scans with their backward, as functions of a flat list of tensors, the form in which they are traced and compiled."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from itertools import islice
from typing import Any

import torch
from torch import Tensor

from tracecompile.runtime.engine.divided import Divided

Run = Callable[..., Sequence[Tensor]]


def keeping_scan(parts: Divided, steps: int) -> Callable[..., list[Tensor]]:
    """Returns a scan forward that keeps what the scan backward needs.

    Args:
        parts: Of the step, which has products.
        steps: How many.

    Returns:
        (*arguments of the scan) to (*outputs (steps, *shape), *last carries, *kept (steps, *shape)): the carries before
        every step that backward reads, and the products.
    """
    places, step = parts.places, parts.forward
    assert step is not None

    def run(*flat: Tensor) -> list[Tensor]:
        values, shared = flat[: places.values], flat[places.moving :]
        carries: Sequence[Tensor] = flat[places.values : places.moving]
        made, kept = [], []
        for time in range(steps):
            found = step(*(value[time] for value in values), *carries, *shared)
            first, last = len(found) - parts.kept - len(carries), len(found) - parts.kept
            made.append(found[:first])
            kept.append([*(carries[place - places.values] for place in parts.reads), *found[last:]])
            carries = found[first:last]
        return [*_stacked(made), *carries, *_stacked(kept)]

    return run


def backward_scan(parts: Divided, step: Run, steps: int) -> Callable[..., list[Tensor]]:
    """Returns a scan backward.

    Args:
        parts: Of the step.
        step: Forward, to (outputs, next carries, ...); for scans that are run again.
        steps: How many.

    Returns:
        (*values, *carries, *what every step reads, *cotangents of the outputs (steps, *shape) and last carries) to the
        gradients of the wanted arguments. Where the step has products, in place of the first carries (*kept).
    """
    places = parts.places

    def run(*flat: Tensor) -> list[Tensor]:
        left = iter(flat)
        values = list(islice(left, places.values))
        carries = list(islice(left, places.moving - places.values if parts.forward is None else len(parts.reads)))
        kept = list(islice(left, parts.kept))
        shared = list(islice(left, places.count - places.moving))
        signals = list(left)
        states = signals[len(signals) - (places.moving - places.values) :]
        signals = signals[: len(signals) - len(states)]
        if parts.forward is None:
            moments = _again(step, values, carries, shared, steps)
        else:
            read: dict[int, Tensor] = {**dict(enumerate(values)), **dict(zip(parts.reads, carries, strict=True))}
            moments = [[read[at][time] if at in read else None for at in range(places.moving)] for time in range(steps)]
        made: list[Sequence[Tensor]] = []
        for time in reversed(range(steps)):
            given = (*moments[time], *shared, *(product[time] for product in kept))
            found = parts.back(*given, *(signal[time] for signal in signals), *states)
            of = dict(zip(parts.moving, found, strict=False))
            states = [of.get(place, state) for place, state in enumerate(states, places.values)]
            made.insert(0, found)
        first = (*moments[0], *shared, *(signal[0] for signal in signals), *states)
        return _gathered(parts, moments, made, states, first)

    return run


def _again(
    step: Run, values: Sequence[Tensor], carries: Sequence[Tensor], shared: Sequence[Tensor], steps: int
) -> list[list[Any]]:
    """Returns values and carries of every step, run again."""
    moments = []
    for time in range(steps):
        moments.append([*(value[time] for value in values), *carries])
        carries = step(*moments[-1], *shared)[1]  # type: ignore[assignment]
    return moments


def _gathered(
    parts: Divided,
    moments: Sequence[Sequence[Any]],
    made: Sequence[Sequence[Tensor]],
    states: Sequence[Tensor],
    first: Sequence[Any],
) -> list[Tensor]:
    """Returns the gradients of the wanted arguments.

    Args:
        parts: Of the step.
        moments: Values and carries of every step.
        made: What every step backward has returned.
        states: Gradients of the first carries.
        first: What the graph of sums takes of a step.
    """
    places = parts.places
    after = len(parts.moving)

    def rows(source: int) -> Tensor:
        of = moments if source < places.moving else made
        at = source if source < places.moving else source - places.moving + after
        return torch.stack([each[at] for each in of])

    sides = [side.joined(rows(side.source)) for side in parts.sums.sides]
    added = [_sum(made, after + at) for at in parts.sums.added]
    of = dict(zip(parts.shared, parts.finish(*first, *sides, *added), strict=True))
    for at, place in enumerate(parts.moving):
        of[place] = states[place - places.values] if place >= places.values else torch.stack([row[at] for row in made])
    return [of[place] for place in sorted(of)]


def _sum(made: Sequence[Sequence[Tensor]], at: int) -> Tensor:
    """Returns the sum of one of the values of every step, the last step first, as autograd adds them up."""
    total = made[-1][at]
    for row in reversed(made[:-1]):
        total = total + row[at]
    return total


def _stacked(rows: Sequence[Sequence[Tensor]]) -> list[Tensor]:
    """Returns (steps, *shape) of each of some values of every step."""
    return [torch.stack(list(each)) for each in zip(*rows, strict=True)]
