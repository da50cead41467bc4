"""What people keep of a run, and how: lists from before the first step, histories that are read back, other axes."""

from __future__ import annotations

from typing import Any

import pytest
import torch
from support.oracle import HIDDEN, INPUTS, OUTPUTS, Program, require_right, spike
from torch import Tensor, nn


class Net(nn.Module):
    """A layer of leaky neurons and a readout."""

    def __init__(self) -> None:
        super().__init__()
        self.inp, self.out = nn.Linear(INPUTS, HIDDEN), nn.Linear(HIDDEN, OUTPUTS)

    def step(self, x_t: Tensor, v: Tensor) -> tuple[Tensor, Tensor]:
        v = 0.9 * v + self.inp(x_t)
        z = spike(v - 0.8)
        return z, v - 0.8 * z


# Records that begin before the first step.


class BeginsWithTheStart(Net):
    def forward(self, x: Tensor) -> tuple[Tensor, Tensor]:
        states = [torch.full((x.shape[1], HIDDEN), 0.1)]
        outs = []
        for x_t in x:
            z, v = self.step(x_t, states[-1])
            states.append(v)
            outs.append(self.out(z))
        return torch.stack(states, 1), torch.stack(outs)


class BeginsWithLearnedStart(Net):
    def __init__(self) -> None:
        super().__init__()
        self.v0 = nn.Parameter(0.2 * torch.randn(HIDDEN))

    def forward(self, x: Tensor) -> Any:
        v = self.v0.expand(x.shape[1], -1)
        record, outs = [v], []
        for x_t in x:
            z, v = self.step(x_t, v)
            record += [v]
            outs.append(self.out(z))
        return {"v": torch.stack(record), "out": torch.stack(outs).mean(0)}


class AStepBehind(Net):
    def forward(self, x: Tensor) -> tuple[Tensor, Tensor]:
        z, v = x.new_zeros(x.shape[1], HIDDEN), x.new_zeros(x.shape[1], HIDDEN)
        before, outs = [], []
        for t in range(x.shape[0]):
            before.append(z)
            outs.append(self.out(v))
            z, v = self.step(x[t], v)
        return torch.stack(before), torch.stack(outs) + self.out(z)


class ListOfStates(Net):
    def forward(self, x: Tensor) -> list[Tensor]:
        v = x.new_zeros(x.shape[1], HIDDEN)
        record = [v]
        for x_t in x:
            z, v = self.step(x_t, v)
            record.append(v)
        return [*record[:1], self.out(z), *record[1:]]


# Histories that are written, and read back.


class DelayLine(Net):
    def __init__(self) -> None:
        super().__init__()
        self.lateral = nn.Linear(HIDDEN, HIDDEN, bias=False)

    def forward(self, x: Tensor) -> Tensor:
        steps, batch, _ = x.shape
        v = x.new_zeros(batch, HIDDEN)
        spikes = x.new_zeros(steps + 2, batch, HIDDEN)
        for t in range(steps):
            v = 0.8 * v + self.inp(x[t]) + self.lateral(spikes[t].clone())
            z = spike(v - 0.8)
            spikes[t + 2] = z
            v = v - 0.8 * z
        return self.out(spikes[2:].mean(0))


class MembraneHistory(Net):
    def forward(self, x: Tensor) -> tuple[Tensor, Tensor]:
        batch, steps = x.shape[1], x.shape[0]
        v, z = torch.zeros(batch, steps, HIDDEN), torch.zeros(batch, steps, HIDDEN)
        for t in range(steps):
            before = v[:, t - 1] * (1 - z[:, t - 1].detach()) if t > 0 else torch.zeros(batch, HIDDEN)
            v[:, t] = 0.9 * before + self.inp(x[t])
            z[:, t] = spike(v[:, t] - 0.8)
        return z, self.out(z.sum(1))


class WrittenTwice(Net):
    def forward(self, x: Tensor) -> Tensor:
        v = x.new_zeros(x.shape[1], HIDDEN)
        outs = torch.zeros(x.shape[0], x.shape[1], OUTPUTS)
        for t in range(x.shape[0]):
            z, v = self.step(x[t], v)
            outs[t] = self.out(z)
            outs[t] += 0.5
        return outs


class LastAxis(Net):
    def forward(self, x: Tensor) -> tuple[Tensor, Tensor]:
        v = x.new_zeros(x.shape[1], HIDDEN)
        spikes, outs = x.new_zeros(x.shape[1], HIDDEN, x.shape[0]), []
        for t in range(x.shape[0]):
            z, v = self.step(x[t], v)
            spikes[..., t] = z
            outs.append(self.out(z))
        return spikes, torch.stack(outs, dim=-1)


class BooleanRaster(Net):
    def forward(self, x: Tensor) -> tuple[Tensor, Tensor]:
        v = x.new_zeros(x.shape[1], HIDDEN)
        raster = torch.zeros(x.shape[0], x.shape[1], HIDDEN, dtype=torch.bool)
        total = torch.zeros(x.shape[1], OUTPUTS)
        for t in range(x.shape[0]):
            z, v = self.step(x[t], v)
            raster[t] = z.detach() > 0
            total = total + self.out(z)
        return total, raster


class ReadInOtherWays(Net):
    def forward(self, x: Tensor) -> tuple[Tensor, Tensor]:
        v, outs = x.new_zeros(x.shape[1], HIDDEN), []
        for t in range(x.shape[0]):
            z, v = self.step(x[t, :, :], v)
            outs.append(self.out(z))
        return torch.stack(outs[::-1]), torch.stack(outs[::2]) + outs[0]


class BurnInFromZero(Net):
    """Sums that begin in some step, from Python's own zero."""

    def forward(self, x: Tensor) -> tuple[Any, Any, Any]:
        v = x.new_zeros(x.shape[1], HIDDEN)
        total, count, penalty = 0, 0, 0.0
        for t in range(x.shape[0]):
            z, v = self.step(x[t], v)
            if t >= 2:
                total, count = total + z, count + 1
            if t > 0:
                penalty += 0.1 * self.out(z).pow(2).mean()
        return total / max(count, 1), penalty, v


class BurnInFromNothing(Net):
    """A sum that begins as its first value, in the second half."""

    def forward(self, x: Tensor) -> Any:
        v, total = x.new_zeros(x.shape[1], HIDDEN), None
        for t in range(x.shape[0]):
            z, v = self.step(x[t], v)
            out = self.out(z)
            if t >= x.shape[0] // 2:
                total = out if total is None else total + out
        return total


PROGRAMS = {
    kind.__name__: Program(kind)
    for kind in (
        *(BeginsWithTheStart, BeginsWithLearnedStart, AStepBehind, ListOfStates),
        *(DelayLine, MembraneHistory, WrittenTwice, LastAxis, BooleanRaster, ReadInOtherWays),
        *(BurnInFromZero, BurnInFromNothing),
    )
}


@pytest.mark.parametrize("name", PROGRAMS)
def test_kept_as_the_model_keeps_it(name: str) -> None:
    require_right(PROGRAMS[name])
