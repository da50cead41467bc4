"""A loop around one step of a layer, for the models of which the step is what matters."""

from __future__ import annotations

from typing import Any

import torch
from support.oracle import HIDDEN, INPUTS, OUTPUTS
from torch import Tensor, nn


class Cell(nn.Module):
    """Calls ``step`` once per time step and reads its spikes; subclasses write the step."""

    def __init__(self) -> None:
        super().__init__()
        self.inp, self.out = nn.Linear(INPUTS, HIDDEN), nn.Linear(HIDDEN, OUTPUTS)

    def step(self, current: Tensor, v: Tensor) -> tuple[Tensor, Tensor]:
        """Returns the spikes and the next membrane."""
        raise NotImplementedError

    def forward(self, x: Tensor) -> Any:
        """Takes (T, B, inputs) and returns a readout per step."""
        v, outs = x.new_zeros(x.shape[1], HIDDEN), []
        for x_t in x:
            z, v = self.step(self.inp(x_t), v)
            outs.append(self.out(z))
        return torch.stack(outs)


class Recurrent(Cell):
    """The same with a matrix between its neurons."""

    def __init__(self) -> None:
        super().__init__()
        self.lateral = nn.Parameter(0.3 * torch.randn(HIDDEN, HIDDEN))
