"""Recognises lists that hold what the loop computed: one value per step, of all steps or of some."""

from __future__ import annotations

from dataclasses import dataclass
from itertools import pairwise
from typing import Any

from torch import fx

from tracecompile.capture.loops.loop_body import Loop, Site
from tracecompile.program import Bounds, ChosenSteps

SHORTEST = 2
"""A single value of the loop is no list of them."""


@dataclass(frozen=True)
class Run:
    """The values of one site in steps of one distance.

    Attributes:
        site: What was computed.
        bounds: Which steps: a slice of the record of all steps; None for all of it.
        backwards: Whether the list holds them from the last to the first.
    """

    site: Site
    bounds: Bounds | None
    backwards: bool = False


Part = Run | fx.Node


def collected(loop: Loop, items: Any) -> list[Part] | None:
    """Recognises a list in which values of the loop follow each other step by step.

    Returns:
        What the list holds, in order: runs of values of the loop, and single values; None for any other list.
    """
    if not isinstance(items, (list, tuple)) or not all(isinstance(item, fx.Node) for item in items):
        return None
    places = [loop.when.get(item) for item in items]
    parts: list[Part] = []
    start = 0
    while start < len(items):
        end = _end_of_run(loop, places, start)
        if end - start < SHORTEST:
            parts.append(items[start])
            end = start + 1
        else:
            parts.append(_run(loop, places, start, end))
        start = end
    return parts if any(isinstance(part, Run) for part in parts) else None


def _end_of_run(loop: Loop, places: list[tuple[int, Site] | None], start: int) -> int:
    """Returns where the values end that follow each other from one position on."""
    if start + 1 >= len(places) or places[start + 1] is None:
        return start + 1
    first, second = _first(loop, places, start), places[start + 1]
    if first is None or second is None or first[1] != second[1] or first[0] == second[0]:
        return start + 1
    distance, end = second[0] - first[0], start + 2
    while end < len(places) and places[end] == (second[0] + distance * (end - start - 1), second[1]):
        end += 1
    return end


def _first(loop: Loop, places: list[tuple[int, Site] | None], start: int) -> tuple[int, Site] | None:
    """Returns step and site of a list's item, where what stands at the place of the first step is that step's."""
    here, following = places[start], places[start + 1]
    if here is None and following is not None and following[0] == 1 and following[1] not in loop.sometimes:
        return (0, following[1]) if loop.at(following[1], 0) is None else None
    return here


def _run(loop: Loop, places: list[tuple[int, Site] | None], start: int, end: int) -> Run:
    first = _first(loop, places, start)
    last = places[end - 1]
    assert first is not None
    assert last is not None
    if places[start] != first:
        loop.irregular = True
    distance = (last[0] - first[0]) // (end - start - 1)
    bounds = bounds_of(min(first[0], last[0]), max(first[0], last[0]), abs(distance), loop.steps)
    return Run(first[1], None if bounds == (None, None, 1) else bounds, backwards=distance < 0)


def bounds_of(low: int, high: int, stride: int, steps: int) -> Bounds:
    """Returns the slice of all steps that begins and ends with two of them."""
    start = None if low == 0 else edge(low, steps)
    return (start, None if high + stride >= steps else edge(high + 1, steps), stride)


def edge(step: int, steps: int) -> int:
    """Returns a step as an index, from the front or from the end, whichever is nearer."""
    return step if 2 * step < steps else step - steps


def chosen_steps(numbers: tuple[int, ...], steps: int) -> ChosenSteps:
    """Returns steps as a slice of all steps, where they are one."""
    distances = {after - before for before, after in pairwise(numbers)}
    if len(distances) > 1:
        return ChosenSteps(None, numbers)
    return ChosenSteps(bounds_of(numbers[0], numbers[-1], distances.pop() if distances else 1, steps))
