"""Counts the spikes of every layer while a record is made."""

from __future__ import annotations

from typing import Any

import torch
from torch import Tensor

from tracecompile.program import StepProgram
from tracecompile.runtime.record import Record


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

    def add(self, record: Record, states: Any, traced: Any, of_layers: Any, norms: Any) -> None:
        """Counts one step and passes it on."""
        self.steps += 1
        for layer, (outputs, _) in zip(self.layers, of_layers, strict=True):
            # A junction has no core, so that it has no outputs here.
            for name, value in zip(layer.outputs, outputs, strict=layer.core is not None):
                if name in layer.spikes:
                    fired = (value != 0).to(torch.float64)
                    self.counts[layer.name] = self.counts[layer.name] + fired if layer.name in self.counts else fired
        Record.add(record, states, traced, of_layers, norms)

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
