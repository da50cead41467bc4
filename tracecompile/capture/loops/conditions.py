"""What the user's code compares its step numbers and its number of steps with."""

from __future__ import annotations

from typing import Any

from tracecompile.capture.tracing.source import Place
from tracecompile.capture.tracing.tape import Condition, Tape

MOST_STEPS = 200
"""Traces get no longer than this to see what a condition does."""


def needed_length(tape: Tape, length: int) -> int:
    """Returns how long a trace has to be to show both outcomes of the conditions on its step numbers.

    A condition that is met for the first time at step c is told from one that is met c steps before the end only where
    there are more than two times as many.
    """
    numbers = [
        2 * int(abs(side)) + 3
        for condition in tape.conditions
        if condition.node is None and abs(condition.count - length) <= 2
        for side in condition.sides[1:]
        if type(side) in (int, float)
    ]
    return min(max([length, *numbers]), MOST_STEPS)


def condition_on_length(tapes: tuple[Tape, Tape]) -> Condition | None:
    """Returns a comparison, outside the loop, of a number that depends on how many steps there are.

    Args:
        tapes: Traces of two lengths.
    """
    short, longer = (_by_place(tape) for tape in tapes)
    for place, found in short.items():
        others = longer.get(place, [])
        if len(others) > len(found):
            continue  # looked at in every step, such as the condition of a while loop
        for one, other in zip(found, others, strict=False):
            if one.sides != other.sides:
                return one
    return None


def _by_place(tape: Tape) -> dict[Any, list[Condition]]:
    found: dict[Any, list[Condition]] = {}
    for condition in tape.conditions:
        if condition.node is not None and isinstance(condition.place, Place):
            found.setdefault(condition.place, []).append(condition)
    return found
