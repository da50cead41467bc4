"""A loop that is left after a fixed number of steps: what follows it works on a record as long as the input."""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

import pytest
import torch
import torch.nn.functional as F
from support.oracle import HIDDEN, INPUTS, OUTPUTS, Program, require_right, spike
from torch import Tensor, nn

import tracecompile

LAST = 7
"""The loop is left after this step."""


class LeftEarly(nn.Module):
    """Leaky neurons; ``after`` makes the result of a record whose end the loop does not fill."""

    def __init__(self) -> None:
        super().__init__()
        self.inp, self.out = nn.Linear(INPUTS, HIDDEN), nn.Linear(HIDDEN, OUTPUTS)

    def steps(self, x: Tensor) -> int:
        return x.shape[0]

    def record(self, x: Tensor) -> Tensor:
        return torch.zeros((x.shape[0], x.shape[1], OUTPUTS), dtype=x.dtype)

    def after(self, x: Tensor, record: Tensor) -> Any:
        raise NotImplementedError

    def forward(self, x: Tensor) -> Any:
        v, record = x.new_zeros(x.shape[1], HIDDEN), self.record(x)
        for t in range(self.steps(x)):
            v = 0.8 * v + self.inp(x[t])
            z = spike(v - 0.5)
            v = v - 0.5 * z
            record[t, :, :] = self.out(z)
            if t >= LAST:
                break
        return self.after(x, record)


class LogSumExp(LeftEarly):
    def after(self, x: Tensor, record: Tensor) -> Any:
        return record.logsumexp(0)


class Spread(LeftEarly):
    def after(self, x: Tensor, record: Tensor) -> Any:
        return record.var(0), record.norm(dim=0)


class SoftMaximum(LeftEarly):
    def after(self, x: Tensor, record: Tensor) -> Any:
        return (F.softmax(record, dim=0) * record).sum(0)


class Sorted(LeftEarly):
    def after(self, x: Tensor, record: Tensor) -> Any:
        return record.sort(dim=0)[0][-3:].pow(2).sum(0)


class ProductOfOnes(LeftEarly):
    def record(self, x: Tensor) -> Tensor:
        return torch.ones((x.shape[0], x.shape[1], OUTPUTS), dtype=x.dtype)

    def after(self, x: Tensor, record: Tensor) -> Any:
        return record.prod(0)


class BesideALayerOnTheInput(LeftEarly):
    """What a layer makes of the input before the loop is read after it alone."""

    def __init__(self) -> None:
        super().__init__()
        self.skip = nn.Linear(INPUTS, OUTPUTS)

    def record(self, x: Tensor) -> Tensor:
        self.read = self.skip(x)
        return super().record(x)

    def after(self, x: Tensor, record: Tensor) -> Any:
        return (record * self.read).pow(2).mean(0)


FORMS = (LogSumExp, Spread, SoftMaximum, Sorted, ProductOfOnes, BesideALayerOnTheInput)


def for_so_many(form: type[LeftEarly]) -> Callable[[int], LeftEarly]:
    """Returns what makes a model whose own number of steps it is."""

    class OwnNumber(form):  # type: ignore[misc, valid-type]
        def __init__(self, num_steps: int) -> None:
            super().__init__()
            self.num_steps = num_steps

        def steps(self, x: Tensor) -> int:
            return self.num_steps

    return OwnNumber


@pytest.mark.parametrize("form", [LogSumExp, BesideALayerOnTheInput])
def test_the_number_of_steps_is_that_of_the_input(form: type[LeftEarly]) -> None:
    require_right(Program(form))


@pytest.mark.parametrize("form", FORMS)
def test_the_number_of_steps_is_the_models_own(form: type[LeftEarly]) -> None:
    require_right(Program(for_so_many(form), fixed_steps=True, runs=((11, 1), (23, 5)), lengths=(18, 36)))


def test_it_is_said_in_the_report() -> None:
    net = tracecompile.convert(for_so_many(LogSumExp)(18), torch.randn(18, 2, INPUTS))
    assert any("needs the values of all time steps" in note for note in net.report.notes)


class BesideAMovingBuffer(LeftEarly):
    """What a buffer makes of the input is read after the loop, and the buffer has moved when backward runs."""

    def __init__(self) -> None:
        super().__init__()
        self.register_buffer("gain", torch.ones(OUTPUTS))

    def forward(self, x: Tensor) -> Any:
        gains = x[:, :, :OUTPUTS] * self.gain
        v, record = x.new_zeros(x.shape[1], HIDDEN), []
        for x_t in x:
            v = 0.8 * v + self.inp(x_t)
            z = spike(v - 0.5)
            v = v - 0.5 * z
            record.append(self.out(z))
        return (torch.stack(record).exp() * gains.amax(0)).sum(0)


def test_what_is_made_of_a_buffer_is_not_made_anew() -> None:
    model, x = BesideAMovingBuffer(), torch.randn(6, 2, INPUTS)
    net = tracecompile.convert(model, x, bins=6)
    found = []
    for module in (model, net):
        module.zero_grad()
        loss = module(x).sum()
        with torch.no_grad():
            model.gain.copy_(model.gain + 1.0)
        loss.backward()
        with torch.no_grad():
            model.gain.fill_(1.0)
        found.append(model.out.bias.grad.clone())
    assert torch.allclose(*found)
