"""A loop over time that runs before another one: all of its steps, as one operation of the other's prologue."""

from __future__ import annotations

import copy
from collections.abc import Iterator, Mapping
from typing import Any

import torch
from torch import Tensor, nn

from tracecompile.program import Carry, StepProgram

SEGMENT = "segment_"
"""How the names of these operations begin."""


class Segment(nn.Module):
    """The program of one such loop.

    It takes what its loop reads of the arguments of the model and of the segments before it, and returns what the
    segments behind it read. Called, it runs step by step as the model does; an executor runs it by its rule.

    Attributes:
        program: The program.
    """

    def __init__(self, program: StepProgram) -> None:
        """Takes the program."""
        super().__init__()
        self.program = program
        self.prologue, self.step, self.epilogue = program.prologue, program.step, program.epilogue

    def forward(self, *given: Any) -> tuple[Any, ...]:
        """Runs all steps."""
        sequences, invariants, states = self.prologue(*given)
        steps = self.program.length or sequences[0].shape[self.program.inputs[0].dim]
        kept: list[list[Tensor]] = [[] for _ in self.program.outputs]
        for step in range(steps):
            now = [whole.select(x.dim, step) for whole, x in zip(sequences, self.program.inputs, strict=True)]
            outputs, states = self.step(*now, *invariants, *states)
            for values, value in zip(kept, outputs, strict=True):
                values.append(value)
        collected = []
        for values, output in zip(kept, self.program.outputs, strict=True):
            chosen = range(steps) if output.chosen is None else output.chosen.of(steps)
            total = torch.stack(values) if output.collect == "stack" else values[-1]
            if output.collect == "sum":
                total = sum((values[step] for step in chosen), start=torch.zeros_like(values[0]))
            collected.append(total)
        return tuple(self.epilogue(*collected, *states, *invariants))

    def __deepcopy__(self, memo: dict[int, Any]) -> Segment:
        """Returns a copy; pytree specifications never change, and torch warns about copying them."""
        memo |= {id(spec): spec for spec in (self.program.signature, self.program.result)}
        other = type(self)(copy.deepcopy(self.program, memo))
        memo[id(self)] = other
        return other


def lasting(program: StepProgram) -> tuple[Carry, ...]:
    """Returns the states of a program that are there between calls, if any are: its own, then those of its segments."""
    *before, last = with_segments(program)
    return tuple(carry for each in (last, *before) for carry in each.carries if not carry.statistic)


def with_segments(program: StepProgram) -> tuple[StepProgram, ...]:
    """Returns the programs of all segments of a model in order, that of its last loop at the end."""
    return (*(segment.program for _, segment in segments_of(program.leaves)), program)


def segments_of(leaves: Mapping[str, nn.Module]) -> Iterator[tuple[str, Segment]]:
    """Yields the segments among the modules that a program owns, by name, in the order in which they run."""
    for name, leaf in leaves.items():
        if isinstance(leaf, Segment):
            yield name, leaf
