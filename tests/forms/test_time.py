"""The step number and the number of steps as values: which steps are recorded, and what is done with the record."""

from __future__ import annotations

import math
from dataclasses import replace
from typing import Any

import pytest
import torch
from support.oracle import HIDDEN, INPUTS, OUTPUTS, Program, require_refused, require_right, spike
from torch import Tensor, nn

import tracecompile
from tracecompile.runtime.module import session_of


class Net(nn.Module):
    """Leaky neurons and a leaky readout; what is recorded of the readout is up to the subclasses."""

    def __init__(self) -> None:
        super().__init__()
        self.inp, self.out = nn.Linear(INPUTS, HIDDEN), nn.Linear(HIDDEN, OUTPUTS)

    def start(self, x: Tensor) -> tuple[Tensor, Tensor]:
        return x.new_zeros(x.shape[1], HIDDEN), x.new_zeros(x.shape[1], OUTPUTS)

    def step(self, x_t: Tensor, v: Tensor, y: Tensor) -> tuple[Tensor, Tensor]:
        v = 0.9 * v + self.inp(x_t)
        z = spike(v - 0.8)
        return v - 0.8 * z, 0.8 * y + self.out(z)

    def membranes(self, x: Tensor) -> Tensor:
        (v, y), record = self.start(x), []
        for x_t in x:
            v, y = self.step(x_t, v, y)
            record.append(y)
        return torch.stack(record)


# Which steps are recorded.


class AfterBurnIn(Net):
    def forward(self, x: Tensor) -> Tensor:
        (v, y), outs = self.start(x), []
        for t in range(x.shape[0]):
            v, y = self.step(x[t], v, y)
            if t >= 4:
                outs.append(y)
        return torch.stack(outs)


class SumAfterBurnIn(Net):
    def forward(self, x: Tensor) -> Tensor:
        (v, y), total = self.start(x), x.new_zeros(x.shape[1], OUTPUTS)
        for t, x_t in enumerate(x):
            v, y = self.step(x_t, v, y)
            if not t < 2:
                total += y
        return total / x.shape[0]


class EveryThird(Net):
    def forward(self, x: Tensor) -> Tensor:
        (v, y), outs = self.start(x), []
        for t in range(x.shape[0]):
            v, y = self.step(x[t], v, y)
            if t % 3 == 1:
                outs.append(y)
        return torch.stack(outs, 1)


class SumOfEverySecond(Net):
    def forward(self, x: Tensor) -> Tensor:
        (v, y), total = self.start(x), 0
        for t, x_t in enumerate(x):
            v, y = self.step(x_t, v, y)
            if t % 2:
                continue
            total = total + y
        return total


class TheLastFew(Net):
    def forward(self, x: Tensor) -> Tensor:
        steps = len(x)
        (v, y), outs = self.start(x), []
        for t in range(steps):
            v, y = self.step(x[t], v, y)
            if steps - t <= 3:
                outs.append(self.out.weight.sum() * y)
        return torch.stack(outs).mean(0)


class NamedSteps(Net):
    def forward(self, x: Tensor) -> list[Tensor]:
        (v, y), outs = self.start(x), []
        for t in range(x.shape[0]):
            v, y = self.step(x[t], v, y)
            if t in (0, 2):
                outs.append(y)
        return [*outs, y]


class Scheduled(Net):
    """A gain per step, out of a table that is longer than any sequence."""

    def __init__(self) -> None:
        super().__init__()
        self.register_buffer("gains", torch.linspace(0.5, 1.5, 80))

    def forward(self, x: Tensor) -> Tensor:
        (v, y), outs = self.start(x), []
        for t, x_t in enumerate(x):
            v, y = self.step(self.gains[t] * x_t, v, y)
            outs.append(y)
        return torch.stack(outs)


# Loops over other ranges.


class FromTheThird(Net):
    def forward(self, x: Tensor) -> Tensor:
        (v, y), outs = self.start(x), []
        for t in range(2, x.shape[0]):
            v, y = self.step(x[t] - 0.5 * x[t - 1] + 0.2 * x[t - 2], v, y)
            outs.append(y)
        return torch.stack(outs)


class FromTheEnd(Net):
    def forward(self, x: Tensor) -> Tensor:
        v, y = self.start(x)
        for t in range(x.shape[0] - 1, -1, -1):
            v, y = self.step(x[t], v, y)
        return y


class BackwardsIntoPlace(Net):
    def forward(self, x: Tensor) -> Tensor:
        v, y = self.start(x)
        outs = x.new_zeros(x.shape[0], x.shape[1], OUTPUTS)
        for t in reversed(range(x.shape[0])):
            v, y = self.step(x[t], v, y)
            outs[t] = y
        return outs


class EverySecondFrame(Net):
    def forward(self, x: Tensor) -> Tensor:
        (v, y), outs = self.start(x), []
        for t in range(0, x.shape[0], 2):
            v, y = self.step(x[t], v, y)
            outs.append(y)
        return torch.stack(outs)


class StopsInTime(Net):
    def forward(self, x: Tensor) -> Tensor:
        v, y = self.start(x)
        for t in range(min(x.shape[0], 7)):
            v, y = self.step(x[t], v, y)
        return y


# What is done with the record.


class Halves(Net):
    def forward(self, x: Tensor) -> tuple[Tensor, Tensor]:
        m = self.membranes(x)
        return m[: x.shape[0] // 2].mean(0), m[x.shape[0] // 2 :].mean(0)


class InWindows(Net):
    def forward(self, x: Tensor) -> Tensor:
        m = self.membranes(x)
        return torch.stack([part.mean(0) for part in m.chunk(3)])


class TheMiddle(Net):
    def forward(self, x: Tensor) -> Tensor:
        (v, y), outs = self.start(x), []
        for x_t in x:
            v, y = self.step(x_t, v, y)
            outs.append(y)
        return outs[len(outs) // 2] + outs[-1]


class WarmUpOfLongOnes(Net):
    def forward(self, x: Tensor) -> Tensor:
        m = self.membranes(x)
        return m[8:].mean(0) if x.shape[0] >= 16 else m.mean(0)


class AtMostTen(Net):
    def forward(self, x: Tensor) -> Tensor:
        m = self.membranes(x)
        return m[-min(10, x.shape[0]) :].sum(0) / math.sqrt(x.shape[0])


class ByPosition(Net):
    def forward(self, x: Tensor) -> Tensor:
        m = self.membranes(x)
        return m[[0, 1, x.shape[0] - 1]]


class CountedByTorch(Net):
    """Step numbers that are tensors: to index with, to compare, to read."""

    def forward(self, x: Tensor) -> tuple[Tensor, Tensor]:
        (v, y), late, record = self.start(x), 0.0, x.new_zeros(x.shape[0], x.shape[1], OUTPUTS)
        for t in torch.arange(x.shape[0]):
            v, y = self.step(x[t], v, y)
            record[t] = y
            if t.item() % 2 == 0 and t >= 14:
                late = late + y
        return late + y, record


class CountedIntoAList(Net):
    def forward(self, x: Tensor) -> Tensor:
        (v, y), outs = self.start(x), [torch.empty(0)] * x.shape[0]
        for t in torch.arange(x.shape[0]):
            v, y = self.step(x[t], v, y)
            outs[t] = y
        return torch.stack(outs)


class EverySecondIntoPlace(Net):
    def forward(self, x: Tensor) -> tuple[Tensor, Tensor]:
        steps, batch, _ = x.shape
        (v, y), record, last = self.start(x), x.new_zeros(steps, batch, OUTPUTS), torch.ones(batch, OUTPUTS, steps)
        for t in range(0, steps, 2):
            v, y = self.step(x[t], v, y)
            record[t], last[..., t] = y, y
        return record, last


class FirstAndLastIntoPlace(Net):
    def forward(self, x: Tensor) -> Tensor:
        (v, y), record = self.start(x), x.new_zeros(*x.shape[:2], OUTPUTS)
        for t, x_t in enumerate(x):
            v, y = self.step(x_t, v, y)
            if t in (0, len(x) - 1):
                record[t] = y
        return record


class BackwardsFromNothing(Net):
    """Each step begins elsewhere in memory than in a sequence that is turned round, which a product may round by."""

    def forward(self, x: Tensor) -> Tensor:
        v, total = None, 0
        for t in reversed(range(x.shape[0])):
            current = self.inp(x[t])
            if v is None:
                v = torch.zeros_like(current)
            v = 0.9 * v + current
            z = spike(v - 0.8)
            v, total = v - 0.8 * z, total + self.out(z)
        return total


class EveryThirdFromTheSecond(Net):
    def forward(self, x: Tensor) -> Tensor:
        (v, y), record = self.start(x), x.new_zeros(*x.shape[:2], OUTPUTS)
        for t, x_t in enumerate(x):
            v, y = self.step(x_t, v, y)
            if t % 3 == 1:
                record[t] = y
        return record


class EverySecondByDetach(EverySecondFrame):
    """Spikes without a function of their own, in a loop that makes but a step or two of a short sequence."""

    def step(self, x_t: Tensor, v: Tensor, y: Tensor) -> tuple[Tensor, Tensor]:
        v = 0.9 * v + self.inp(x_t)
        soft = torch.sigmoid(4 * (v - 0.8))
        z = torch.where(v > 0.8, 1.0, 0.0).detach() + soft - soft.detach()
        return v - 0.8 * z, 0.8 * y + self.out(z)


LONG = ((7, 1), (11, 5), (23, 2))
RIGHT = {
    kind.__name__: Program(kind)
    for kind in (
        *(Scheduled, SumAfterBurnIn, EveryThird, SumOfEverySecond, TheLastFew, NamedSteps),
        *(FromTheThird, FromTheEnd, BackwardsIntoPlace, EverySecondFrame, CountedByTorch),
        *(CountedIntoAList, EverySecondIntoPlace, EveryThirdFromTheSecond, EverySecondByDetach),
        FirstAndLastIntoPlace,
        *(Halves, InWindows, TheMiddle, WarmUpOfLongOnes, AtMostTen, ByPosition),
    )
} | {
    "AfterBurnIn": Program(AfterBurnIn, runs=LONG),
    "BackwardsFromNothing": Program(BackwardsFromNothing, precise=False, example=(6, 3)),
    "StopsInTime": Program(StopsInTime, flat=False),
}


@pytest.mark.parametrize("name", RIGHT)
def test_right_at_every_length(name: str) -> None:
    require_right(RIGHT[name])


def test_what_depends_on_the_length_is_captured_anew_and_kept() -> None:
    net = tracecompile.convert(WarmUpOfLongOnes(), torch.randn(6, 2, INPUTS))
    assert any("captured anew" in note for note in net.report.notes)
    programs = len(session_of(net).programs)
    for steps in (20, 6, 20):
        net(torch.randn(steps, 3, INPUTS))
    assert len(session_of(net).programs) == programs + 1


@pytest.mark.parametrize("kind", [SumOfEverySecond, CountedByTorch, FirstAndLastIntoPlace])
def test_a_choice_of_steps_is_the_same_program_at_every_length(kind: type[nn.Module]) -> None:
    net = tracecompile.convert(kind(), torch.randn(6, 2, INPUTS))
    for steps in (9, 20):
        net(torch.randn(steps, 3, INPUTS))
    assert len(session_of(net).programs) == 1


def test_a_record_of_every_second_step_is_written_at_once() -> None:
    net = tracecompile.convert(EverySecondIntoPlace(), torch.randn(12, 2, INPUTS))
    sizes = []
    for steps in (12, 30):
        net(torch.randn(steps, 2, INPUTS))
        sizes.append(len(session_of(net).executor.program.epilogue.graph.nodes))
    assert sizes[0] == sizes[1]


# A body that is another one at some steps.


class Body(Net):
    def forward(self, x: Tensor) -> Tensor:
        v, y = self.start(x)
        for t in range(x.shape[0]):
            v, y = self.changed(t, *self.step(x[t], v, y))
        return y

    def changed(self, t: int, v: Tensor, y: Tensor) -> tuple[Tensor, Tensor]:
        raise AssertionError("overridden")


class KickedOnce(Body):
    def changed(self, t: int, v: Tensor, y: Tensor) -> tuple[Tensor, Tensor]:
        return (v + 1.0 if t == 17 else v), y  # to blame


class ForgetsEverySixth(Body):
    def changed(self, t: int, v: Tensor, y: Tensor) -> tuple[Tensor, Tensor]:
        if t % 6 == 5:
            v = torch.zeros_like(v)  # to blame
        return v, y


class AnnealedByTime(Body):
    def changed(self, t: int, v: Tensor, y: Tensor) -> tuple[Tensor, Tensor]:
        return v * math.exp(-t / 20), y  # to blame


class QuietAtFirst(Net):
    def forward(self, x: Tensor) -> Tensor:
        v, total = self.start(x)[0], 0
        for t, x_t in enumerate(x):
            current = self.inp(x_t)
            if t == 0:
                current = current * 0.5  # to blame
            v = 0.9 * v + current
            z = spike(v - 0.8)
            v, total = v - 0.8 * z, total + self.out(z)
        return total


class MeanOfEverySecond(Net):
    def forward(self, x: Tensor) -> Tensor:
        (v, y), mean = self.start(x), x.new_zeros(x.shape[1], OUTPUTS)
        for t in range(0, x.shape[0], 2):
            v, y = self.step(x[t], v, y)
            mean = mean + (y - mean) / (t + 1)  # to blame
        return mean


@pytest.mark.parametrize("kind", [KickedOnce, ForgetsEverySixth, AnnealedByTime, QuietAtFirst, MeanOfEverySecond])
def test_a_body_that_changes_with_time_is_refused_at_its_line(kind: type[nn.Module]) -> None:
    require_refused(replace(Program(kind), fires=False), line="to blame")


class AnnealedByTensor(Net):
    def forward(self, x: Tensor) -> Tensor:
        v, y = self.start(x)
        for t in torch.arange(x.shape[0]):
            v, y = self.step(x[t], v, y)
            v = v * torch.exp(-t / 20)
        return y


def test_a_step_number_that_is_computed_with_as_a_tensor_is_refused() -> None:
    require_refused(replace(Program(AnnealedByTensor), fires=False))


def test_the_builtins_are_as_before() -> None:
    before: tuple[Any, ...] = (range, enumerate)
    tracecompile.convert(AfterBurnIn(), torch.randn(6, 2, INPUTS))
    assert before == (range, enumerate)
    assert isinstance(range(3), range)
