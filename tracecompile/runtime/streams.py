"""The inputs of a stream: slices of the sequences that a model takes, some of them at a time."""

from __future__ import annotations

from collections.abc import Iterable, Iterator, Sequence
from typing import Any

import torch
from torch import Tensor

from tracecompile.errors import InvalidInput
from tracecompile.exact import only_exact_value
from tracecompile.kinds import check_kinds
from tracecompile.program import StepProgram

Step = tuple[Any, ...]
"""What one step takes: a slice of every sequence."""


def checked_lookahead(steps: object) -> int:
    """Returns how many steps a stream may take ahead.

    Raises:
        InvalidInput: It is no number of steps.
    """
    if isinstance(steps, bool) or not isinstance(steps, int) or steps < 1:
        raise InvalidInput(
            f"lookahead is {steps!r}, and says how many inputs a stream may take at a time.",
            "Pass a whole number from 1 on.",
        )
    return steps


def taken(steps: Iterable[Any], count: int) -> Iterator[list[Step]]:
    """Takes steps from the caller; yields those that may be run together, as many as there are up to ``count``.

    They are alike in shape, type and device: another one begins anew. Where the caller's iterator fails, what came
    before it is yielded first. Of several steps copies are taken: the caller may fill one tensor again and again.
    """
    held: list[Step] = []
    alike: list[Any] = []
    try:
        for step in steps:
            given = step if isinstance(step, tuple) else (step,)
            if count > 1:
                given, kind = tuple(map(_own, given)), kinds(given)
                if held and kind != alike:
                    yield held
                    held = []
                alike = kind
            held.append(given)
            if len(held) == count:
                yield held
                held = []
    except Exception:
        if held:
            yield held
        raise
    if held:
        yield held


def as_sequences(program: StepProgram, steps: Sequence[Step]) -> tuple[Any, ...]:
    """Puts the inputs of steps together along the time axis of the model's arguments.

    Args:
        program: After all passes.
        steps: Alike, in their order.

    Raises:
        InvalidInput: The model does not take its sequences as they are given.
    """
    given = steps[0]
    check_kinds(given, {})
    axes = time_axes(program)
    if program.kind != "sequence" or axes is None or len(axes) != len(given):
        raise InvalidInput(
            "Only a model that takes a whole sequence, and slices it as it is given, can be streamed.",
            "Call a step model directly; move work on the whole input into the loop.",
        )
    kinds = [type(value).__name__ for value in given if not isinstance(value, Tensor)]
    if kinds:
        raise InvalidInput(
            f"A step of a stream holds {kinds[0]}, and not only tensors.",
            "Pass each step's slice of the sequence, a tuple of slices where the model takes several sequences.",
        )
    if len(steps) == 1:
        return tuple(value.unsqueeze(axis) for value, axis in zip(given, axes, strict=True))
    return tuple(torch.stack(rows, axis) for rows, axis in zip(zip(*steps, strict=True), axes, strict=True))


def time_axes(program: StepProgram) -> list[int] | None:
    """Returns the time axis of each sequence input where these are the call's own arguments, else None."""
    placeholders = [node for node in program.prologue.graph.nodes if node.op == "placeholder"]
    output = next(node for node in reversed(program.prologue.graph.nodes) if node.op == "output")
    given = [
        (x.dim, sequence)
        for x, sequence in zip(program.inputs, output.args[0][0], strict=True)
        if not only_exact_value(program, x.name)
    ]
    return [dim for dim, _ in given] if [sequence for _, sequence in given] == placeholders else None


def _own(value: Any) -> Any:
    """Returns a copy of a tensor that nothing is learnt through: one that has a graph may not be written into."""
    return value.clone() if isinstance(value, Tensor) and not value.requires_grad else value


def kinds(step: Step) -> list[Any]:
    """Returns everything in which steps that run together are alike."""
    return [
        (type(value), value.is_nested or value.shape, value.dtype, value.device, value.layout, value.requires_grad)
        if isinstance(value, Tensor)
        else type(value)
        for value in step
    ]
