"""The inputs of a stream: slices of the sequences that a model takes."""

from __future__ import annotations

from typing import Any

from torch import Tensor

from tracecompile.errors import InvalidInput
from tracecompile.exact import only_exact_value
from tracecompile.kinds import check_kinds
from tracecompile.program import StepProgram


def as_sequences(program: StepProgram, given: tuple[Any, ...]) -> tuple[Any, ...]:
    """Gives each per-step input a time axis of one step, where the model's argument has it.

    Raises:
        InvalidInput: The model does not take its sequences as they are given.
    """
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
    return tuple(value.unsqueeze(axis) for value, axis in zip(given, axes, strict=True))


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
