"""What runs the time steps of a sequence: the eager reference, chunks of steps, or compiled scans; and why."""

from __future__ import annotations

import shutil
from collections.abc import Mapping
from dataclasses import dataclass
from typing import Literal

from torch import Tensor

from tracecompile import units
from tracecompile.program import StepProgram, example_value, step_results
from tracecompile.rules import rule_of

LONG_ENOUGH = 128
"""Steps below which "auto" does not compile."""
LARGE_ENOUGH = 1 << 23
"""Updates of a state's elements per sequence below which "auto" does not compile: seconds of compiling are to come back
within some tens of training steps."""
COMPILED_CHUNK = 16
"""Steps that are computed together where the user does not say: as many as a compiled scan has."""


@dataclass(frozen=True)
class Choice:
    """What runs a sequence.

    Attributes:
        backend: "eager" or "inductor".
        chunk: Steps computed together; 1 is the reference, bit-equal to the model.
        reason: Why, for the report.
    """

    backend: Literal["eager", "inductor"]
    chunk: int
    reason: str


def choose(program: StepProgram, steps: int, inputs: Mapping[str, Tensor]) -> Choice:
    """Returns what runs a recorded sequence.

    Args:
        program: After all passes.
        steps: Number of time steps.
        inputs: The whole sequences, by the placeholder of their steps.
    """
    settings = program.settings
    if one_by_one(program):
        return Choice("eager", 1, "the time steps of this model are taken one by one")
    if settings.backend == "eager":
        return Choice("eager", settings.chunk or 1, "as asked for")
    chunk = settings.chunk or COMPILED_CHUNK
    if settings.backend == "inductor":
        return Choice("inductor", chunk, "as asked for")
    eager = settings.chunk or 1
    size = round(_elements(program) * _growth(program, steps, inputs))
    if steps < LONG_ENOUGH or steps * size < LARGE_ENOUGH:
        return Choice("eager", eager, f"{steps:,} steps of {size:,} state elements are too few to compile for")
    cuda = any(value.is_cuda for value in inputs.values())
    if not cuda and not (shutil.which("g++") or shutil.which("clang++")):
        return Choice("eager", eager, "there is no C++ compiler")
    return Choice("inductor", chunk, f"{steps:,} steps of {size:,} state elements are worth compiling for")


def foretell(program: StepProgram) -> list[str]:
    """Returns sentences for the report: how the backend of a sequence will be chosen, and what that means."""
    settings = program.settings
    wanted = settings.backend == "inductor" or (settings.chunk or 1) > 1
    if one_by_one(program):
        return ["Nothing is compiled or computed in chunks: the steps are taken one by one."] if wanted else []
    notes = []
    if settings.backend == "auto":
        notes.append(
            f"A sequence of {LONG_ENOUGH} steps or more is compiled if these update {LARGE_ENOUGH:,} state elements or "
            f"more in all (in a batch like the example's, {_elements(program):,} a step)."
        )
    if wanted or settings.backend == "auto":
        together = settings.chunk or COMPILED_CHUNK
        notes.append(
            f"{'Where' if settings.backend == 'auto' else 'As'} up to {together} steps are computed together, values "
            "are the model's up to rounding: a spike may differ where its membrane is within rounding of the threshold."
        )
    return notes


def one_by_one(program: StepProgram) -> bool:
    """Tells whether the steps of a program have to be taken one by one: what they draw may not be drawn ahead."""
    draws = any(node.meta.get("draws") for node in program.step.graph.nodes)
    return draws or units.one_by_one(program.units) or rule_of(program.settings).through_time


def _elements(program: StepProgram) -> int:
    """Returns how many elements the states have after a step of the example."""
    return sum(example_value(node).numel() for node in step_results(program.step)[1])


def _growth(program: StepProgram, steps: int, inputs: Mapping[str, Tensor]) -> float:
    """Returns how many times larger than the example's a batch is."""
    placeholders = {node.name: node for node in program.step.graph.nodes if node.op == "placeholder"}
    for name, value in inputs.items():
        elements: int = example_value(placeholders[name]).numel()
        if elements:
            return value.numel() / steps / elements
    return 1.0
