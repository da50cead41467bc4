"""Counts the spikes of every layer while a record is made."""

from __future__ import annotations

import copy
from collections.abc import Callable, Sequence
from typing import Any

import torch
from torch import Tensor

from tracecompile.analysis.spikes import spikes_sent
from tracecompile.graphs.shown import shown
from tracecompile.program import StepProgram


class Spikes:
    """Spikes per neuron of each layer; its ``add`` is an observer of the executor.

    A library may scale what it returns, or keep the spikes of a layer to itself: they are counted where they are made.

    Attributes:
        fired: Per layer that spikes, in how many steps each neuron of each sample has done so.
        sums: Per layer, how many spikes that were in all; a neuron may emit several a step, and of either sign.
        steps: Number of steps.
    """

    def __init__(self, program: StepProgram) -> None:
        """Takes a program whose layers are known."""
        self.sent = {layer.name: spikes_sent(program, layer) for layer in program.layers if layer.spikes}
        # A copy: a normalisation in training moves its statistics whenever it runs.
        self.step = copy.deepcopy(shown(program, (name for names in self.sent.values() for name in names)))
        self.fired: dict[str, Tensor] = {}
        self.sums: dict[str, Tensor] = {}
        self.steps = 0

    def add(self, given: Sequence[Any]) -> None:
        """Counts the step that begins with some inputs, invariants and states."""
        self.steps += 1
        with torch.no_grad():
            values = iter(self.step(*given))
        for name, sent in self.sent.items():
            count = torch.stack([next(values).abs().to(torch.float64) for _ in sent]).sum(0)
            fired = (count != 0).to(torch.float64)
            self.fired[name] = self.fired[name] + fired if name in self.fired else fired
            self.sums[name] = self.sums[name] + count if name in self.sums else count

    def rate(self, layer: str) -> float | None:
        """Returns the mean number of spikes per neuron and step; None for a layer that does not spike."""
        return float((self.sums[layer] / self.steps).mean()) if layer in self.sums else None

    def share(self, layer: str, of: Callable[[Tensor], Tensor]) -> float | None:
        """Returns the share of neurons and samples that fire in a share of the steps of some kind; None as above."""
        return float(of(self.fired[layer] / self.steps).double().mean()) if layer in self.fired else None

    def notes(self) -> list[str]:
        """Says which layers are silent, or fire without a pause, in all samples."""
        found = []
        for name, count in self.fired.items():
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
