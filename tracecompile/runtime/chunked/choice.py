"""What runs the time steps of a sequence: the eager reference, chunks of steps, or compiled scans; and why."""

from __future__ import annotations

import itertools
import shutil
from collections.abc import Sequence
from dataclasses import dataclass
from typing import Literal

import torch
from torch import Tensor

from tracecompile.program import StepProgram, example_value

LONG_ENOUGH = 128
"""Steps below which "auto" does not compile."""
LARGE_ENOUGH = 1 << 23
"""Updates of a state's elements per sequence below which "auto" does not compile: seconds of compiling are to come back
within some tens of training steps."""
COMPILED_CHUNK = 32
"""Steps that are computed together where the user does not say: more take more memory and more time to compile."""


@dataclass(frozen=True)
class Choice:
    """What runs a sequence.

    Attributes:
        backend: "eager" or "inductor".
        chunk: Steps computed together; 1 is the reference, bit-equal to the model.
        reason: Why, for the report; "" where the user said so.
    """

    backend: Literal["eager", "inductor"]
    chunk: int
    reason: str = ""


def choose(program: StepProgram, steps: int, states: Sequence[Tensor], device: torch.device | None) -> Choice:
    """Returns what runs a recorded sequence.

    Args:
        program: After all passes.
        steps: Number of time steps.
        states: Initial states.
        device: Of the inputs.
    """
    settings = program.settings
    if not program.units or settings.rule == "bptt":
        return Choice("eager", 1, "the time steps of this model are taken one by one")
    if settings.backend == "eager":
        return Choice("eager", settings.chunk or 1)
    chunk = settings.chunk or COMPILED_CHUNK
    if settings.backend == "inductor":
        return Choice("inductor", chunk)
    eager = settings.chunk or 1
    updates = steps * sum(state.numel() for state in states)
    if steps < LONG_ENOUGH or updates < LARGE_ENOUGH:
        return Choice("eager", eager, f"{steps} steps of {updates // max(steps, 1)} values are too few to compile for")
    if (device is None or device.type == "cpu") and not (shutil.which("g++") or shutil.which("clang++")):
        return Choice("eager", eager, "there is no C++ compiler")
    return Choice("inductor", chunk, f"{steps} steps of {updates // steps} values are worth compiling for")


def choose_for_example(program: StepProgram, steps: int) -> Choice:
    """Returns what would run a sequence like the example."""
    placeholders = {node.name: node for node in program.step.graph.nodes if node.op == "placeholder"}
    values = [example_value(placeholders[carry.placeholder]) for carry in program.carries]
    states = [value for value in values if isinstance(value, Tensor)]
    return choose(program, steps, states, states[0].device if states else None)


def fitting_chunk(edges: Sequence[int], most: int) -> int:
    """Returns the number of steps, between half of ``most`` and it, that leaves the fewest steps over in all bins."""
    widths = [after - before for before, after in itertools.pairwise(edges)]
    longest = min(most, max(widths))
    sizes = range(longest, max(longest // 2, 1) - 1, -1)
    return min(sizes, key=lambda size: sum(width % size for width in widths))
