"""Running sums over the time steps of whole sequences: before the first loop, between two loops, after the last."""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

import pytest
import torch
from support.comparisons import require_gradients, require_values
from support.oracle import HIDDEN, INPUTS, OUTPUTS, Program, require_right, spike
from torch import Tensor, nn

import tracecompile
from tracecompile.capture.layerwise.running import casts


class Net(nn.Module):
    """A layer of neurons, and another that reads what ``between`` makes of all their spikes."""

    def __init__(self) -> None:
        super().__init__()
        self.inp, self.hidden = nn.Linear(INPUTS, HIDDEN), nn.Linear(HIDDEN, HIDDEN)
        self.out = nn.Linear(HIDDEN, OUTPUTS)

    def fire(self, currents: Any) -> Tensor:
        v, spikes = torch.zeros_like(currents[0]), []
        for current in currents:
            v = 0.8 * v + current
            z = spike(v - 0.6)
            v = v - 0.6 * z
            spikes.append(z)
        return torch.stack(spikes)

    def before(self, x: Tensor) -> Tensor:
        return self.inp(x)

    def between(self, spikes: Tensor) -> Tensor:
        return self.hidden(spikes)

    def after(self, spikes: Tensor) -> Any:
        return self.out(spikes)

    def forward(self, x: Tensor) -> Any:
        return self.after(self.fire(self.between(self.fire(self.before(x)))))


class OfSpikes(Net):
    def between(self, spikes: Tensor) -> Tensor:
        return 0.2 * self.hidden(spikes.cumsum(0))


class OfCurrents(Net):
    def between(self, spikes: Tensor) -> Tensor:
        return 0.2 * torch.cumsum(self.hidden(spikes), dim=-3)


class OfSums(Net):
    """A sum of a sum; what comes after it is a mean over time of another."""

    def between(self, spikes: Tensor) -> Tensor:
        return 0.05 * self.hidden(spikes).cumsum(dim=0).cumsum(0)

    def after(self, spikes: Tensor) -> Any:
        return torch.tanh(self.out(spikes.cumsum(0) / spikes.shape[0])).mean(0)


class OfWhetherTheyFired(Net):
    """Spikes that come late weigh less; whether a neuron fired is counted in a type of its own."""

    def between(self, spikes: Tensor) -> Tensor:
        return self.hidden(spikes * torch.exp(-0.3 * torch.cumsum(spikes > 0, 0, dtype=spikes.dtype)))


class WithWhatWasThere(Net):
    """The sum is joined to the currents of the first layer, and its last value returned."""

    def forward(self, x: Tensor) -> Any:
        currents = self.before(x)
        total = torch.cumsum(input=self.fire(currents) + currents, dim=0)
        return self.out(self.fire(0.2 * total)), total[-1]


class OverTheLength(Net):
    """The sum is divided by the number of steps, that of the input and that of the spikes."""

    def forward(self, x: Tensor) -> Any:
        spikes = self.fire(self.before(x))
        total = spikes.cumsum(0) / x.shape[0] + self.inp(x).cumsum(0) / spikes.shape[0]
        return self.out(self.fire(self.hidden(total)))


class BeforeTheFirst(Net):
    def before(self, x: Tensor) -> Tensor:
        return 0.3 * self.inp(x).cumsum(0)


class OfTheInput(Net):
    def before(self, x: Tensor) -> Tensor:
        return 0.3 * self.inp(x.cumsum(0))


class BatchFirst(Net):
    def before(self, x: Tensor) -> Tensor:
        return super().before(x).transpose(0, 1)

    def between(self, spikes: Tensor) -> Tensor:
        return 0.2 * self.hidden(spikes.transpose(0, 1)).cumsum(1).transpose(0, 1)


class Averaged(Net):
    """A smooth second layer, whose result shows every bit of the sum."""

    def __init__(self) -> None:
        super().__init__()
        self.gain = nn.Parameter(torch.rand(HIDDEN))

    def forward(self, x: Tensor) -> Any:
        v, record = 0.0, []
        for current in torch.cumsum(self.gain * self.fire(self.before(x)), 0):
            v = 0.8 * v + current
            record.append(v)
        return torch.stack(record)


def louder(make: Callable[[], nn.Module]) -> Callable[[], nn.Module]:
    """Makes models with twice the weights, so that the second layer fires."""

    def made() -> nn.Module:
        model = make()
        with torch.no_grad():
            for parameter in model.parameters():
                if parameter.dim() > 1:
                    parameter.mul_(2.0)
        return model

    return made


def batch_first(steps: int, batch: int) -> Tensor:
    return 2 * torch.randn(batch, steps, INPUTS)


FORMS = (OfSpikes, OfCurrents, OfSums, OfWhetherTheyFired, WithWhatWasThere, OverTheLength, BeforeTheFirst, OfTheInput)
PROGRAMS = {form.__name__: Program(louder(form), trained=form is not WithWhatWasThere) for form in FORMS}
PROGRAMS["BatchFirst"] = Program(louder(BatchFirst), batch_first)
PROGRAMS["Averaged"] = Program(louder(Averaged), trained=False)


@pytest.mark.parametrize("program", PROGRAMS.values(), ids=PROGRAMS.keys())
def test_the_net_is_the_model(program: Program) -> None:
    require_right(program)


def test_nothing_is_said_of_rounding() -> None:
    net = tracecompile.convert(louder(OfSpikes)(), torch.randn(6, 2, INPUTS))
    assert not any("cumsum" in note for note in net.report.notes)


@pytest.mark.parametrize(
    "dtype", [torch.float64, torch.float32, torch.float16, torch.bfloat16, torch.int32, torch.bool]
)
@pytest.mark.parametrize("axis", [0, 1, 2])
def test_a_sum_of_one_step_after_the_other_is_torchs_own(dtype: torch.dtype, axis: int) -> None:
    torch.manual_seed(0)
    values = (3 * torch.randn(50, 40, 30)).to(dtype)
    expected = values.cumsum(axis)
    total: Any = 0
    for step in range(values.shape[axis]):
        added = values.select(axis, step)
        for each in casts(values, expected):
            added = added.to(each)
        total = total + added
        assert torch.equal(total.to(expected.dtype), expected.select(axis, step))


class TimeAndBatchInOneAxis(Net):
    def between(self, spikes: Tensor) -> Tensor:
        return self.hidden(spikes.flatten(0, 1)).cumsum(0).view(spikes.shape)


def test_a_sum_across_samples_as_well_is_taken_before_the_next_loop() -> None:
    require_right(Program(louder(TimeAndBatchInOneAxis), trained=False), parts=(require_values, require_gradients))
