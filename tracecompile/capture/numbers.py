"""Numbers among the arguments: those that the program computes with, and those that are built into it."""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

from torch import nn
from torch.utils import _pytree as pytree

from tracecompile.capture.tracing.build import same_graph
from tracecompile.errors import ConversionError
from tracecompile.program import StepProgram

Capture = Callable[[nn.Module, tuple[Any, ...], dict[str, Any]], StepProgram | None]


def pinned_numbers(
    program: StepProgram, capture: Capture, model: nn.Module, args: tuple[Any, ...], kwargs: dict[str, Any]
) -> tuple[int, ...]:
    """Returns the positions of the numbers that make another program where they have another value.

    The trace notes those that Python compares. One that is counted to, or indexes a list, leaves no trace at all; so
    the model is captured once more with other values.
    """
    leaves, spec = pytree.tree_flatten((args, kwargs))
    steps = None if program.length_bound else program.time[1]
    pinned = [position for position in program.pinned if position != steps]
    if program.length_bound and program.time[1] is not None and program.time[1] not in pinned:
        pinned.append(program.time[1])
    for position, leaf in enumerate(leaves):
        if isinstance(leaf, bool) or not isinstance(leaf, (int, float)) or position in program.explicit_states:
            continue
        if position == steps or position in pinned:
            continue
        for value in other_values(leaf):
            changed = pytree.tree_unflatten([*leaves[:position], value, *leaves[position + 1 :]], spec)
            try:
                other = capture(model, *changed)
            except (ConversionError, RuntimeError, TypeError, IndexError, ValueError):
                other = None
            if other is None or not same_program(program, other):
                pinned.append(position)
                break
    return tuple(pinned)


def other_values(number: float) -> tuple[float, ...]:
    """Returns values that a program which takes the number as it comes would have to take as well."""
    return (number + 1, 2 * number + 3) if isinstance(number, int) else (number + 1.0, 0.0, -number - 1.0)


def same_program(one: StepProgram, other: StepProgram) -> bool:
    """Tells whether two programs are the same up to names."""
    parts = ("prologue", "step", "epilogue")
    return (one.kind, one.length, one.outputs) == (other.kind, other.length, other.outputs) and all(
        same_graph(getattr(one, part).graph, getattr(other, part).graph) for part in parts
    )
