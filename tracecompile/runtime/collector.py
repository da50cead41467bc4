"""Gathers what a sequence returns, step by step or a chunk at a time."""

from __future__ import annotations

from collections.abc import Sequence

import torch
from torch import Tensor

from tracecompile.program import StepProgram


class Collector:
    """Gathers per-step outputs the way the epilogue wants them."""

    def __init__(self, program: StepProgram) -> None:
        """Starts empty."""
        self.outputs = program.outputs
        self.steps: list[list[Tensor]] = [[] for _ in program.outputs]
        self.latest: list[Tensor] = []

    def add(self, outputs: Sequence[Tensor]) -> None:
        """Takes one step's outputs."""
        for kept, value, output in zip(self.steps, outputs, self.outputs, strict=True):
            if output.collect == "stack" or not kept:
                kept.append(value)
            elif output.collect == "sum":
                kept[0] = kept[0] + value
            else:
                kept[0] = value
        self.latest = list(outputs)

    def add_chunk(self, outputs: Sequence[Tensor]) -> None:
        """Takes the outputs of consecutive steps, (steps, *shape) each."""
        for kept, values, output in zip(self.steps, outputs, self.outputs, strict=True):
            if output.collect == "stack":
                kept.extend(values)
            elif output.collect == "sum":
                total = values.sum(0, dtype=values.dtype)
                kept[:] = [kept[0] + total if kept else total]
            else:
                kept[:] = [values[-1].clone()]
        self.latest = [values[-1] for values in outputs]

    def results(self) -> list[Tensor]:
        """Returns what the epilogue reads."""
        return [
            torch.stack(kept) if output.collect == "stack" else kept[0]
            for kept, output in zip(self.steps, self.outputs, strict=True)
        ]
