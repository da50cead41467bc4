"""Gathers what a sequence returns, step by step or a chunk at a time."""

from __future__ import annotations

from collections.abc import Sequence

import torch
from torch import Tensor

from tracecompile.program import StepProgram


class Collector:
    """Gathers per-step outputs the way the epilogue wants them."""

    def __init__(self, program: StepProgram, steps: int) -> None:
        """Starts empty, for a sequence of so many steps."""
        self.outputs = program.outputs
        self.chosen = [None if x.chosen is None else frozenset(x.chosen.of(steps)) for x in program.outputs]
        self.time = 0
        self.steps: list[list[Tensor]] = [[] for _ in program.outputs]
        self.latest: list[Tensor] = []

    def add(self, outputs: Sequence[Tensor]) -> None:
        """Takes one step's outputs."""
        for kept, value, output, chosen in zip(self.steps, outputs, self.outputs, self.chosen, strict=True):
            if chosen is not None and self.time not in chosen:
                continue
            if output.collect == "stack" or not kept:
                kept.append(value)
            elif output.collect == "sum":
                kept[0] = kept[0] + value
            else:
                kept[0] = value
        self.time += 1
        self.latest = list(outputs)

    def add_chunk(self, outputs: Sequence[Tensor]) -> None:
        """Takes the outputs of consecutive steps, (steps, *shape) each."""
        for kept, values, output, chosen in zip(self.steps, outputs, self.outputs, self.chosen, strict=True):
            if output.collect == "stack":
                kept.extend(values)
            elif output.collect == "sum":
                if chosen is not None:
                    values = values[[step for step in range(len(values)) if self.time + step in chosen]]
                total = values.sum(0, dtype=values.dtype)
                kept[:] = [kept[0] + total if kept else total]
            else:
                kept[:] = [values[-1].clone()]
        self.time += len(outputs[0]) if outputs else 0
        self.latest = [values[-1] for values in outputs]

    def results(self) -> list[Tensor]:
        """Returns what the epilogue reads."""
        return [
            torch.stack(kept) if output.collect == "stack" else kept[0] if kept else torch.zeros_like(latest)
            for kept, output, latest in zip(self.steps, self.outputs, self.latest, strict=True)
        ]
