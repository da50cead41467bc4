"""Models that spell operations as few do."""

from __future__ import annotations

from typing import Any

import pytest
import torch
from forms.cells import Cell, Recurrent
from support.oracle import HIDDEN, Program, require_right, spike
from torch import Tensor, nn
from torch.nn import functional as F

import tracecompile

State = tuple[Tensor, Tensor]


class ShiftedInPlace(Cell):
    """Counts in whole numbers, with an augmented assignment."""

    def step(self, current: Tensor, v: Tensor) -> State:
        v = 0.9 * v + current
        z = spike(v - 0.8)
        level = (v > 0.2).long()
        level <<= 1
        return z, v - 0.8 * z - 0.1 * level


class StartsFromTransposed(Cell):
    """The first membrane is a normalised current, by its value, turned over twice."""

    def __init__(self) -> None:
        super().__init__()
        self.norm = nn.BatchNorm1d(HIDDEN)

    def forward(self, x: Tensor) -> Any:
        v, outs = self.norm(self.inp(x[0])).T.contiguous().T.contiguous(), []
        for x_t in x:
            v = 0.9 * v + self.inp(x_t)
            z = spike(v - 0.8)
            v = v - 0.8 * z
            outs.append(self.out(z))
        return torch.stack(outs)


class StateLikeADroppedCurrent(Cell):
    """Zeros like a current with a mask, which is drawn for that alone."""

    def forward(self, x: Tensor) -> Any:
        v, outs = torch.zeros_like(F.alpha_dropout(self.inp(x[0]), 0.5, self.training)), []
        for x_t in x:
            v = 0.9 * v + self.inp(x_t)
            z = spike(v - 0.8)
            v = v - 0.8 * z
            outs.append(self.out(z))
        return torch.stack(outs)


class StateLikeTheFirstCurrent(Cell):
    """Zeros like what the first step drops out, which nothing may draw a second time."""

    def forward(self, x: Tensor) -> Any:
        v, outs = None, []
        for x_t in x:
            current = F.alpha_dropout(self.inp(x_t), 0.5, self.training)
            v = 0.9 * (torch.zeros_like(current) if v is None else v) + current
            z = spike(v - 0.8)
            v = v - 0.8 * z
            outs.append(self.out(z))
        return torch.stack(outs)


class StateLikeANormalisedCurrent(StartsFromTransposed):
    """The normalisation has seen one input more than there are steps, or as many."""

    def __init__(self, before: bool = True) -> None:
        super().__init__()
        self.before = before

    def forward(self, x: Tensor) -> Any:
        v, outs = torch.zeros_like(self.norm(self.inp(x[0]))) if self.before else None, []
        for x_t in x:
            current = self.inp(x_t)
            normalised = self.norm(current)
            v = 0.9 * (torch.zeros_like(normalised) if v is None else v) + normalised + 0.1 * current
            z = spike(v - 0.8)
            v = v - 0.8 * z
            outs.append(self.out(z))
        return torch.stack(outs)


class RowsConcatenated(Cell):
    """A state that is a list as long as the batch, joined under another name."""

    def forward(self, x: Tensor) -> Any:
        v, outs = torch.concat([torch.zeros(1, HIDDEN) for _ in range(len(x[0]))]).to(x), []
        for x_t in x:
            v = 0.9 * v + self.inp(x_t)
            z = spike(v - 0.8)
            v = v - 0.8 * z
            outs.append(self.out(z))
        return torch.stack(outs)


class LateralProductTurnedOver(Recurrent):
    """A matrix that is turned over is no state with its axes elsewhere: the product stays as it is."""

    def step(self, current: Tensor, v: Tensor) -> State:
        v = 0.9 * v + current
        z = spike(v - 0.8)
        return z, v - 0.8 * z + 0.1 * (self.lateral @ z.t().contiguous()).T


class NeuronsLast(Cell):
    """Brings an axis to the end and back, by one of the many names for it."""

    def step(self, current: Tensor, v: Tensor) -> State:
        v = torch.swapdims(torch.swapdims(v, 0, 1) * 0.9 + current.moveaxis(0, 1), 0, 1)
        z = spike(v - 0.8)
        return z, v - 0.8 * z


class OtherNames(Cell):
    """Nothing is called by the name that most use."""

    def step(self, current: Tensor, v: Tensor) -> State:
        v = torch.subtract(torch.multiply(v, 0.9), torch.negative(current))
        z = spike(torch.subtract(v, 0.8))
        late = torch.divide(torch.not_equal(torch.fix(v), 0.0).to(v), 4.0)
        return z, torch.clip(v - 0.8 * z - late, -4.0, 4.0)


class CurrentByMaskOfASum(Cell):
    """What the mask selects is cast before it is written."""

    def step(self, current: Tensor, v: Tensor) -> State:
        v = 0.9 * v + current
        z = spike(v - 0.8)
        v = v - 0.8 * z
        low = v < -1.0
        v[low] = (0.5 * current[low]).to(v.dtype) - 0.5
        return z, v


MODELS = [
    ShiftedInPlace, StartsFromTransposed, RowsConcatenated, LateralProductTurnedOver, NeuronsLast, OtherNames,
    CurrentByMaskOfASum,
]  # fmt: skip
RUNS = ((3, 4), (11, 5), (23, 2))


@pytest.mark.parametrize("model", MODELS, ids=lambda model: model.__name__)
def test_is_converted(model: type[nn.Module]) -> None:
    require_right(Program(model, runs=RUNS))


@pytest.mark.parametrize("model", [StateLikeADroppedCurrent, StateLikeTheFirstCurrent])
def test_a_state_like_a_dropped_current_draws_as_the_model_does(model: type[nn.Module]) -> None:
    own, x = model(), torch.randn(6, 3, 6)
    net = tracecompile.convert(own, x, backend="eager", rule="bptt")
    found = []
    for each in (own, net):
        torch.manual_seed(0)
        found.append((each(x), torch.get_rng_state()))
    assert all(map(torch.equal, *found))


@pytest.mark.parametrize("before", [True, False])
def test_a_state_like_a_normalised_current_moves_statistics_as_the_model_does(before: bool) -> None:
    require_right(Program(lambda: StateLikeANormalisedCurrent(before), runs=RUNS))
