"""A second loop that goes backwards through what the first one made: it is refused, and told why at that line."""

from __future__ import annotations

from collections.abc import Callable, Iterable
from typing import Any

import pytest
import torch
from support.comparisons import require_gradients, require_values
from support.oracle import HIDDEN, INPUTS, OUTPUTS, Program, require_refused, require_right, spike
from torch import Tensor, nn


class Net(nn.Module):
    """A layer of neurons; subclasses read its spikes in another loop."""

    def __init__(self, steps: int | None = None) -> None:
        super().__init__()
        self.inp, self.hidden = nn.Linear(INPUTS, HIDDEN), nn.Linear(HIDDEN, HIDDEN)
        self.out = nn.Linear(HIDDEN, OUTPUTS)
        self.steps = steps

    def fire(self, currents: Iterable[Tensor]) -> list[Tensor]:
        v: Any = 0.0
        spikes = []
        for current in currents:
            v = 0.8 * v + current
            z = spike(v - 0.6)
            v = v - 0.6 * z
            spikes.append(z)
        return spikes


class Flipped(Net):
    def forward(self, x: Tensor) -> Any:
        spikes = torch.stack(self.fire(self.inp(x)))
        return self.out(torch.stack(self.fire(self.hidden(spikes.flip(0)))))  # backwards


class Indexed(Net):
    def forward(self, x: Tensor) -> Any:
        currents = self.hidden(torch.stack(self.fire(self.inp(x))))
        currents = currents[torch.arange(x.shape[0] - 1, -1, -1)]  # backwards
        return self.out(torch.stack(self.fire(currents)))


class CountedDown(Net):
    def forward(self, x: Tensor) -> Any:
        currents = self.hidden(torch.stack(self.fire(self.inp(x))))
        v, outs = x.new_zeros(x.shape[1], HIDDEN), []
        for t in reversed(range(self.steps or x.shape[0])):
            v = 0.8 * v + currents[t]  # backwards
            outs.append(self.out(spike(v - 0.6)))
        return torch.stack(outs)


class ReversedList(Net):
    def forward(self, x: Tensor) -> Any:
        v, outs = x.new_zeros(x.shape[1], HIDDEN), []
        for z in reversed(self.fire(self.inp(x))):
            v = 0.8 * v + self.hidden(z)  # backwards
            outs.append(self.out(spike(v - 0.6)))
        return torch.stack(outs)


class FromTheEnd(Net):
    def forward(self, x: Tensor) -> Any:
        steps = self.steps or x.shape[0]
        spikes = torch.stack(self.fire(self.inp(x)))
        v, outs = x.new_zeros(x.shape[1], HIDDEN), []
        for t in range(steps):
            v = 0.8 * v + self.hidden(spikes[steps - 1 - t])  # backwards
            outs.append(self.out(spike(v - 0.6)))
        return torch.stack(outs)


FORMS = (Flipped, Indexed, CountedDown, ReversedList, FromTheEnd)


@pytest.mark.parametrize("make", FORMS)
def test_the_line_is_named(make: Callable[[], nn.Module]) -> None:
    refusal = require_refused(Program(make, trained=False), line="# backwards")
    assert "begins with the last time step of an earlier loop" in str(refusal)


def test_the_line_is_named_where_the_model_fixes_the_steps() -> None:
    program = Program(CountedDown, trained=False, fixed_steps=True, example=(30, 2))
    refusal = require_refused(program, line="# backwards")
    assert "begins with the last time step of an earlier loop" in str(refusal)


class BothWays(Net):
    """The input is read in both directions, and what comes of it joined after the loops."""

    def forward(self, x: Tensor) -> Any:
        there = torch.stack(self.fire(self.inp(x)))
        back = torch.stack(self.fire(self.hidden(self.inp(x.flip(0))))).flip(0)
        return self.out(there + back).mean(0)


def test_the_input_may_be_read_backwards() -> None:
    require_right(Program(BothWays, trained=False))


class Shuffled(Net):
    """Another order of the steps, and one that is no loop's."""

    def forward(self, x: Tensor) -> Any:
        return self.out(torch.stack(self.fire(torch.stack(self.fire(self.inp(x))).roll(1, 0))))


class FlippedBefore(Net):
    def forward(self, x: Tensor) -> Any:
        return self.out(torch.stack(self.fire(self.inp(x).flip(0))))


class ChangesWithTime(Net):
    """Reads an earlier layer backwards as well, but it is the step number that makes it no loop."""

    def forward(self, x: Tensor) -> Any:
        currents, v, outs = self.inp(x), x.new_zeros(x.shape[1], HIDDEN), []
        for t in reversed(range(x.shape[0])):
            v = 0.8 * v + currents[t]
            v = torch.tanh(v) if t == 2 else v
            outs.append(self.out(spike(v - 0.6)))
        return torch.stack(outs)


@pytest.mark.parametrize("make", [Shuffled, FlippedBefore])
def test_steps_in_another_order_are_put_into_it_before_the_loop(make: Callable[[], nn.Module]) -> None:
    require_right(Program(make, trained=False), parts=(require_values, require_gradients))


def test_another_refusal_is_what_it_was() -> None:
    assert "begins with" not in str(require_refused(Program(ChangesWithTime, trained=False)))
