"""Random numbers: what is drawn in a step and before it, and what is refused at its line."""

from __future__ import annotations

import random
from typing import Any

import numpy as np
import pytest
import torch
import torch.nn.functional as F
from support.oracle import HIDDEN, INPUTS, Program, require_refused, require_right, spike
from torch import Tensor, nn

import tracecompile
from forms.cells import Cell


class Drawing(Cell):
    """Calls ``draw`` at every step; its subclasses draw on the line that must be named."""

    def draw(self, current: Tensor) -> Any:
        raise NotImplementedError

    def step(self, current: Tensor, v: Tensor) -> tuple[Tensor, Tensor]:
        v = 0.9 * v + self.draw(current)
        z = spike(v - 0.8)
        return z, v - 0.8 * z


class FilledInPlace(Drawing):
    def draw(self, current: Tensor) -> Any:
        return current + 0.1 * torch.empty_like(current).normal_()  # drawn


class FilledByInit(Drawing):
    def draw(self, current: Tensor) -> Any:
        noise = torch.empty_like(current)
        nn.init.uniform_(noise)  # drawn
        return current + 0.1 * noise


class SameForAllSamples(Drawing):
    def draw(self, current: Tensor) -> Any:
        return current + 0.1 * torch.rand(HIDDEN)  # drawn


class FromDistribution(Drawing):
    def draw(self, current: Tensor) -> Any:
        return current + torch.distributions.Normal(0 * current, 0.1, False).rsample()  # drawn


class Gumbel(Drawing):
    def draw(self, current: Tensor) -> Any:
        return current + F.gumbel_softmax(current)  # drawn


class RandomSlopes(Drawing):
    def draw(self, current: Tensor) -> Any:
        return F.rrelu(current, training=True)  # drawn


class DropoutFunction(Drawing):
    def draw(self, current: Tensor) -> Any:
        return F.dropout(current, 0.2, self.training)  # drawn


class DiscardedDraw(Drawing):
    def draw(self, current: Tensor) -> Any:
        torch.rand(3)  # drawn
        return current


class DiscardedDropout(Drawing):
    def __init__(self) -> None:
        super().__init__()
        self.drop = nn.Dropout(0.3)

    def draw(self, current: Tensor) -> Any:
        self.drop(current)  # drawn
        return current


class PythonDraw(Drawing):
    def draw(self, current: Tensor) -> Any:
        share = random.random()  # drawn
        return current * share


class NumpyDraw(Drawing):
    def draw(self, current: Tensor) -> Any:
        noise = np.random.randn(HIDDEN)  # drawn
        return current + torch.as_tensor(noise).to(current)


class DiscardedPythonDraw(Drawing):
    def draw(self, current: Tensor) -> Any:
        random.gauss(0, 1)  # drawn
        return current


class PythonDrawBeforeLoop(Cell):
    def forward(self, x: Tensor) -> Any:
        share = random.random()  # drawn
        return share * super().forward(x)

    def step(self, current: Tensor, v: Tensor) -> tuple[Tensor, Tensor]:
        v = 0.9 * v + current
        z = spike(v - 0.8)
        return z, v - 0.8 * z


class CountedFromNothing(Cell):
    """The sum begins as a number, so that the first step is not written as the others are."""

    def forward(self, x: Tensor) -> Any:
        v, total = x.new_zeros(x.shape[1], HIDDEN), 0
        for x_t in x:
            current = F.dropout(self.inp(x_t), 0.2, self.training)  # drawn
            v = 0.9 * v + current
            z = spike(v - 0.8)
            v, total = v - 0.8 * z, total + self.out(z)
        return total


class DiscardedAfterLoop(PythonDrawBeforeLoop):
    def forward(self, x: Tensor) -> Any:
        y = Cell.forward(self, x)
        F.dropout(y, 0.1, self.training)  # drawn
        return y


REFUSED: list[type[nn.Module]] = [
    FilledByInit, Gumbel, RandomSlopes, DiscardedDraw, DiscardedDropout, PythonDraw, NumpyDraw, DiscardedPythonDraw,
    PythonDrawBeforeLoop, DiscardedAfterLoop,
]  # fmt: skip
DRAWN: list[type[nn.Module]] = [
    FilledInPlace, SameForAllSamples, FromDistribution, DropoutFunction, CountedFromNothing,
]  # fmt: skip


@pytest.mark.parametrize("model", REFUSED, ids=lambda model: model.__name__)
def test_is_refused_at_its_line(model: type[nn.Module]) -> None:
    require_refused(Program(model), line="# drawn")


@pytest.mark.parametrize("model", DRAWN, ids=lambda model: model.__name__)
def test_is_drawn_as_the_model_draws_it(model: type[nn.Module]) -> None:
    require_right(Program(model))


def test_other_generators_are_left_where_they_are() -> None:
    before = random.getstate(), np.random.get_state()[1].tolist()  # type: ignore[union-attr]
    with pytest.raises(tracecompile.ConversionError):
        tracecompile.convert(PythonDraw(), (torch.randn(6, 2, 6),))
    assert (random.getstate(), np.random.get_state()[1].tolist()) == before  # type: ignore[union-attr]


# What draws nothing, or once per sequence.


class DropoutInEvaluation(Drawing):
    def draw(self, current: Tensor) -> Any:
        return F.dropout(current, 0.2, training=False) + F.dropout(current, 0.0, training=True)


class MaskPerSequence(Cell):
    def forward(self, x: Tensor) -> Any:
        v, outs = 0.3 * torch.rand(x.shape[1], HIDDEN), []
        mask = F.dropout(torch.ones(x.shape[1], HIDDEN), 0.3, self.training)
        for x_t in x:
            v = 0.9 * v + self.inp(x_t) * mask
            z = spike(v - 0.8)
            v = v - 0.8 * z
            outs.append(self.out(z))
        return torch.stack(outs)


@pytest.mark.parametrize("model", [DropoutInEvaluation, MaskPerSequence], ids=lambda model: model.__name__)
def test_is_converted(model: type[nn.Module]) -> None:
    require_right(Program(model))


def test_a_dropout_whose_value_nobody_reads_is_nothing_until_it_is_trained() -> None:
    module = DiscardedDropout().eval()
    x = 2 * torch.randn(6, 2, 6)
    net = tracecompile.convert(module, (x,), backend="eager")
    assert torch.equal(net(x), module(x))
    with pytest.raises(tracecompile.ConversionError, match="drawn"):
        net.train()(x)


@pytest.mark.parametrize("model", [SameForAllSamples, DropoutFunction, Gumbel, RandomSlopes])
def test_rule_bptt_draws_what_the_model_draws(model: type[nn.Module]) -> None:
    module = model()
    x = 2 * torch.randn(6, 2, 6)
    net = tracecompile.convert(module, (x,), rule="bptt", backend="eager")
    torch.manual_seed(5)
    wanted = module(x)
    torch.manual_seed(5)
    assert torch.equal(net(x), wanted)


class Leaky(Cell):
    def step(self, current: Tensor, v: Tensor) -> tuple[Tensor, Tensor]:
        v = 0.9 * v + current
        z = spike(v - 0.8)
        return z, v - 0.8 * z


class NoisyInput(Leaky):
    """Noise and a dropout before the loop, which a second pass has to draw again."""

    def noisy(self, x: Tensor) -> Tensor:
        return F.dropout(x + 0.5 * torch.randn_like(x), 0.3, self.training)

    def forward(self, x: Tensor) -> Any:
        return super().forward(self.noisy(x))


def test_a_second_pass_draws_what_the_first_one_drew() -> None:
    torch.manual_seed(0)
    noisy, x, found = NoisyInput().double(), 2 * torch.randn(12, 3, INPUTS, dtype=torch.float64), []
    plain = Leaky().double()
    plain.load_state_dict(noisy.state_dict())
    for model in (noisy, plain):
        net = tracecompile.convert(model, x, bins=2)
        torch.manual_seed(1)
        net(x if model is noisy else noisy.noisy(x))[5].sum().backward()  # one step in the middle of a bin
        found.append(model.inp.weight.grad)
    assert torch.allclose(*found, rtol=1e-9, atol=1e-12)
