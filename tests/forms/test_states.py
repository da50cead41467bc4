"""Initial states as people make them: the batch size is that of the call, whatever it went through."""

from __future__ import annotations

import copy
from collections.abc import Callable
from typing import Any

import numpy as np
import pytest
import torch
from support.oracle import HIDDEN, INPUTS, OUTPUTS, Program, require_refused, require_right, spike
from torch import Tensor, nn

import tracecompile


class StartOf(nn.Module):
    """Leaky neurons whose membrane starts as a function of the batch size says."""

    def __init__(self, start: Callable[[int], Tensor]) -> None:
        super().__init__()
        self.inp, self.out = nn.Linear(INPUTS, HIDDEN), nn.Linear(HIDDEN, OUTPUTS)
        self.start = start

    def forward(self, x: Tensor) -> Tensor:
        v, outs = self.start(x.shape[1]).to(x), []
        for x_t in x:
            v = 0.9 * v + self.inp(x_t)
            z = spike(v - 0.8)
            v = v - 0.8 * z
            outs.append(self.out(z))
        return torch.stack(outs)


def of_list_times(batch: int) -> Tensor:
    return torch.tensor([0.3] * batch).unsqueeze(1).expand(-1, HIDDEN)


STARTS: dict[str, Callable[[int], Tensor]] = {
    "a Variable": lambda batch: torch.autograd.Variable(torch.zeros(batch, HIDDEN)),
    "a Variable drawn at random": lambda batch: torch.autograd.Variable(0.3 * torch.rand(batch, HIDDEN)),
    "nested lists": lambda batch: torch.tensor([[0.2] * HIDDEN for _ in range(batch)]),
    "as_tensor of lists": lambda batch: torch.as_tensor([[0.1 * (k % 3) for k in range(HIDDEN)]] * batch),
    "the constructor, filled": lambda batch: torch.Tensor(batch, HIDDEN).fill_(0.1),
    "the constructor, of lists": lambda batch: torch.Tensor([[0.1] * HIDDEN] * batch),
    "the constructor, drawn": lambda batch: torch.Tensor(batch, HIDDEN).uniform_(0, 0.5),
    "FloatTensor": lambda batch: torch.FloatTensor(batch, HIDDEN).zero_(),
    "the method new": lambda batch: torch.zeros(1).new(int(batch), HIDDEN).fill_(0.2),
    "numpy": lambda batch: torch.from_numpy(np.zeros((batch, HIDDEN))),
    "numpy, one row many times": lambda batch: torch.from_numpy(np.tile(np.linspace(0, 0.5, HIDDEN), (batch, 1))),
    "a plain number": lambda batch: torch.zeros(int(batch), HIDDEN),
    "twice the plain number, cut": lambda batch: torch.full((2 * int(batch) + 1, HIDDEN), 0.1)[:batch],
    "one row a sample, stacked": lambda batch: torch.stack([torch.full((HIDDEN,), 0.2) for _ in range(batch)]),
    "one row a sample, joined": lambda batch: torch.cat([torch.zeros(1, HIDDEN)] * batch),
    "a list of the batch": of_list_times,
    "a shape in a list": lambda batch: torch.zeros(*[batch, HIDDEN]),
    "expanded to a plain number": lambda batch: torch.full((1, HIDDEN), 0.2).expand(int(batch), -1),
}


@pytest.mark.parametrize("start", STARTS.values(), ids=STARTS)
def test_a_state_starts_with_the_batch_size_of_the_call(start: Callable[[int], Tensor]) -> None:
    require_right(Program(lambda: StartOf(start)))


def test_an_example_of_a_single_sample_binds_nothing() -> None:
    program = Program(lambda: StartOf(STARTS["nested lists"]), example=(6, 1), runs=((3, 2), (11, 5)))
    require_right(program)


class BatchFirst(StartOf):
    """The same with the batch before time."""

    def forward(self, x: Tensor) -> Tensor:
        return super().forward(x.transpose(0, 1)).transpose(0, 1)


def test_the_batch_may_come_before_time() -> None:
    inputs: Callable[[int, int], Tensor] = lambda steps, batch: 2 * torch.randn(batch, steps, INPUTS)  # noqa: E731
    require_right(Program(lambda: BatchFirst(STARTS["numpy"]), inputs))


class LearnedStart(StartOf):
    """One learned initial membrane, the same for all samples: a list of it is stacked."""

    def __init__(self) -> None:
        super().__init__(torch.zeros)
        self.initial = nn.Parameter(torch.linspace(0, 0.4, HIDDEN))

    def forward(self, x: Tensor) -> Tensor:
        self.start = lambda batch: torch.stack([self.initial] * batch)
        return super().forward(x)


def test_a_learned_start_is_stacked_once_a_sample() -> None:
    require_right(Program(LearnedStart))


class TargetsInTheLoop(StartOf):
    """What every step is compared with is made anew in every step, of Python lists."""

    def forward(self, x: Tensor) -> Any:
        v, outs = x.new_zeros(x.shape[1], HIDDEN), []
        for x_t in x:
            v = 0.9 * v + self.inp(x_t)
            z = spike(v - 0.8)
            v = v - 0.8 * z
            outs.append(self.out(z) - torch.tensor([[0.5, 1.0, 0.0, 0.25]] * x.shape[1]).to(x))
        return torch.stack(outs)


def test_a_constant_of_every_step_has_the_batch_size_of_the_call() -> None:
    require_right(Program(lambda: TargetsInTheLoop(torch.zeros)))


class OneStep(StartOf):
    """One step a call; the membrane is an attribute."""

    def __init__(self, start: Callable[[int], Tensor]) -> None:
        super().__init__(start)
        self.v: Tensor | None = None

    def reset(self) -> None:
        self.v = None

    def forward(self, x_t: Tensor) -> Tensor:
        if self.v is None:
            self.v = self.start(len(x_t)).to(x_t)
        v = 0.9 * self.v + self.inp(x_t)
        z = spike(v - 0.8)
        self.v = v - 0.8 * z
        return self.out(z)


@pytest.mark.parametrize("name", ["a Variable", "numpy", "nested lists", "the constructor, filled", "a plain number"])
def test_a_model_of_one_step_starts_with_the_batch_size_of_the_call(name: str) -> None:
    require_right(Program(lambda: OneStep(STARTS[name]), step=True))


def test_a_start_that_differs_from_sample_to_sample_is_refused() -> None:
    def start(batch: int) -> Tensor:
        return torch.from_numpy(np.linspace(0, 1, batch * HIDDEN).reshape(batch, HIDDEN))

    require_refused(Program(lambda: StartOf(start)))


class FromNoDimensions(nn.Module):
    """Membrane and running sum start from one number each, in another type than what they come to."""

    def __init__(self, start: Tensor) -> None:
        super().__init__()
        self.inp, self.out = nn.Linear(INPUTS, HIDDEN), nn.Linear(HIDDEN, OUTPUTS)
        self.start = start

    def forward(self, x: Tensor) -> Tensor:
        v = total = self.start
        for x_t in x:
            v = 0.9 * v + self.inp(x_t)
            z = spike(v - 0.8)
            v = v - 0.8 * z
            total = total + self.out(z)
        return total


class StepFromNoDimensions(FromNoDimensions):
    """The same in steps, with the membrane in an attribute."""

    def __init__(self, start: Tensor) -> None:
        super().__init__(start)
        self.v = start

    def forward(self, x: Tensor) -> Tensor:
        self.v = 0.9 * self.v + self.inp(x)
        z = spike(self.v - 0.8)
        self.v = self.v - 0.8 * z
        return self.out(z)


@pytest.mark.parametrize("start", [torch.zeros(()), torch.tensor(0.25, dtype=torch.float64)], ids=str)
@pytest.mark.parametrize("cast", [False, True], ids=["as it is", "autocast"])
@pytest.mark.parametrize("kind", [FromNoDimensions, StepFromNoDimensions])
def test_a_start_without_dimensions_does_not_count_for_the_type(
    kind: type[FromNoDimensions], cast: bool, start: Tensor
) -> None:
    model = kind(start)
    twin, x = copy.deepcopy(model), 2 * torch.rand(9, 3, INPUTS)
    net = tracecompile.convert(model, backend="eager", bins=9)
    results = []
    with torch.autocast("cpu", torch.bfloat16, enabled=cast):
        for run in (net, twin):
            outputs = [run(x)] if kind is FromNoDimensions else [run(x_t) for x_t in x]
            results.append(torch.stack(outputs))
    found, expected = results
    assert found.dtype == expected.dtype
    assert torch.equal(found, expected)
    for result in results:
        result.float().square().sum().backward()
    for one, other in zip(model.parameters(), twin.parameters(), strict=True):
        assert other.grad is not None
        torch.testing.assert_close(one.grad, other.grad, rtol=0.03 if cast else 1e-4, atol=1e-3 * other.grad.norm())
