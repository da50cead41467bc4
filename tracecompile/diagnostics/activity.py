"""Counts the spikes of every layer while a record is made."""

from __future__ import annotations

import torch
from torch import Tensor

from tracecompile.program import StepProgram
from tracecompile.runtime.loop import Loop


class Spikes:
    """Spikes per neuron of each layer; its ``add`` is an observer of the executor.

    Attributes:
        counts: Per layer, in how many steps each neuron of each sample has spiked.
        steps: Number of steps.
    """

    def __init__(self, program: StepProgram) -> None:
        self.layers = program.layers
        self.counts: dict[str, Tensor] = {}
        self.steps = 0

    def add(self, loop: Loop) -> None:
        """Counts the step that a loop has just taken."""
        assert loop.last is not None
        self.steps += 1
        for layer, (outputs, *_) in zip(self.layers, loop.last.of_layers, strict=True):
            # A junction has no core, so that it has no outputs here.
            for name, value in zip(layer.outputs, outputs, strict=layer.core is not None):
                if name in layer.spikes:
                    fired = (value != 0).to(torch.float64)
                    self.counts[layer.name] = self.counts[layer.name] + fired if layer.name in self.counts else fired

    def notes(self) -> list[str]:
        """Says which layers are silent, or fire without a pause, in all samples."""
        found = []
        for name, count in self.counts.items():
            if not bool(count.any()):
                found.append(
                    f"{name}: no neuron fires in {self.steps} steps of the example; lower the threshold or scale its "
                    "weights up, or it will not learn."
                )
            elif bool((count == self.steps).all()):
                found.append(
                    f"{name}: every neuron fires in each of {self.steps} steps of the example; raise the threshold or "
                    "scale its weights down."
                )
        return found
