"""Recurrences that something crosses within a step: weights, sums, masks; and values between layers without a mean."""

from __future__ import annotations

from typing import Any

import pytest
import torch
import torch.nn.functional as F
from support.oracle import HIDDEN, Program, require_right, spike
from torch import Tensor, nn

import tracecompile
from forms.cells import Cell, Recurrent
from tracecompile.program import step_results

State = tuple[Tensor, Tensor]


class ComparisonBesideSurrogate(Cell):
    def step(self, current: Tensor, v: Tensor) -> State:
        v = 0.9 * v + current
        z = spike(v - 0.8)
        fired = torch.where(v > 0.8, torch.ones(1).to(v), torch.zeros(v.shape).to(v))
        return z, v - 0.8 * fired


class TernaryByMask(Cell):
    def step(self, current: Tensor, v: Tensor) -> State:
        v = 0.9 * v + current
        z = spike(v - 0.8).clone()
        z[v < -1.0] = -1.0
        return z, v - 0.8 * z


class TruthBetweenLayers(Cell):
    def step(self, current: Tensor, v: Tensor) -> State:
        v = 0.9 * v + current
        z = spike(v - 0.8)
        second = torch.where(z > 0, current, torch.zeros_like(current))
        return z + 0.1 * spike(second - 0.1), v - 0.8 * z


class SpikesFromTheLastMembrane(Recurrent):
    """Reset and lateral drive of the same spikes, at the top of the step."""

    def step(self, current: Tensor, v: Tensor) -> State:
        z = spike(v - 0.8)
        return z, 0.9 * v - 0.8 * z + current + z @ self.lateral


class LateralInhibitionAtOnce(Recurrent):
    def step(self, current: Tensor, v: Tensor) -> State:
        v = 0.9 * v + current
        z = spike(v - 0.8)
        return z, v - 0.8 * z - 0.1 * (z @ self.lateral)


class InhibitedByTheLoudest(Recurrent):
    """The maximum of a layer's spikes is not a part of any neuron; ties go to the first."""

    def forward(self, x: Tensor) -> Any:
        z, v, total = x.new_zeros(x.shape[1], HIDDEN), x.new_zeros(x.shape[1], HIDDEN), 0.0
        for x_t in x:
            v = 0.9 * v + self.inp(x_t) + z @ self.lateral - 0.3 * z.max(dim=1, keepdim=True)[0]
            z = spike(v - 0.8)
            v = v - 0.8 * z
            total = total + self.out(z)
        return total


class LearnedThresholdOfMixedMembranes(Recurrent):
    """The threshold is read by the neuron and by what mixes the membranes."""

    def __init__(self) -> None:
        super().__init__()
        self.threshold = nn.Parameter(torch.full((HIDDEN,), 0.8))

    def step(self, current: Tensor, v: Tensor) -> State:
        v = 0.9 * v.roll(1, 1) + current + 0.1 * v @ self.lateral
        z = spike(v - self.threshold)
        return z, v - self.threshold * z


class SharedInhibitionAtOnce(Cell):
    def step(self, current: Tensor, v: Tensor) -> State:
        v = 0.9 * v + current
        v = v - 0.3 * v.mean(1, keepdim=True) - 0.1 * torch.softmax(v, 1)
        z = spike(v - 0.8)
        return z, v - z - 0.05 * z.sum(1, keepdim=True)


class NormalisedMembrane(Cell):
    def step(self, current: Tensor, v: Tensor) -> State:
        v = F.layer_norm(0.9 * v + current, (HIDDEN,))
        z = spike(v - 0.8)
        return z, v - 0.8 * z


class WinnerTakesAll(Cell):
    def step(self, current: Tensor, v: Tensor) -> State:
        v = 0.9 * v + current
        winner = F.one_hot(v.argmax(1), HIDDEN).to(v)
        z = spike(v - 0.8) * winner
        return z + 0.1 * v, v - 0.8 * z


class AnySpikeHalvesAll(Cell):
    def step(self, current: Tensor, v: Tensor) -> State:
        v = 0.9 * v + current
        z = spike(v - 0.8)
        return z, torch.where((z > 0).any(1, keepdim=True), 0.5 * v, v)


class FeedbackWithinTheStep(Recurrent):
    """Two layers; the second one's spikes inhibit the first in the same step."""

    def forward(self, x: Tensor) -> Any:
        v = u = x.new_zeros(x.shape[1], HIDDEN)
        outs = []
        for x_t in x:
            v = 0.9 * v + self.inp(x_t)
            z = spike(v - 0.8)
            u = 0.8 * u + 0.5 * z @ self.lateral
            y = spike(u - 0.5)
            v = v - 0.8 * z - 0.3 * y
            u = u - 0.5 * y + 0.1 * v
            outs.append(self.out(y))
        return torch.stack(outs)


class Refractory(Recurrent):
    """A boolean state: who has just fired hears nothing."""

    def forward(self, x: Tensor) -> Any:
        v = z = x.new_zeros(x.shape[1], HIDDEN)
        silent, outs = torch.zeros(x.shape[1], HIDDEN, dtype=torch.bool), []
        for x_t in x:
            v = 0.9 * v + (self.inp(x_t) + 0.3 * z @ self.lateral).masked_fill(silent, 0.0)
            z = spike(v - 0.8)
            silent = z > 0
            v = v - 0.8 * z
            outs.append(self.out(z))
        return torch.stack(outs)


class Countdown(Cell):
    """A whole number as a state: steps that are left of the refractory time."""

    def forward(self, x: Tensor) -> Any:
        v, left = x.new_zeros(x.shape[1], HIDDEN), torch.zeros(x.shape[1], HIDDEN, dtype=torch.long)
        outs = []
        for x_t in x:
            v = torch.where(left > 0, 0.5 * v, 0.9 * v + self.inp(x_t))
            z = spike(v - 0.8)
            left = torch.where(z > 0, torch.full_like(left, 2), (left - 1).clamp(min=0))
            v = v - 0.8 * z
            outs.append(self.out(z))
        return torch.stack(outs)


class Episodes(Recurrent):
    """Episodes end within a batch: states and spikes are cleared by a mask before they recur."""

    def cleared(self, value: Tensor, done: Tensor) -> Tensor:
        return value * (1 - done.to(value).unsqueeze(1))

    def forward(self, x: Tensor) -> Any:
        done = x[..., 0] > 1.5
        v = z = x.new_zeros(x.shape[1], HIDDEN)
        outs = []
        for t in range(x.shape[0]):
            z, v = self.cleared(z, done[t]), self.cleared(v, done[t])
            v = 0.9 * v * (1 - z) + self.inp(x[t]) + z @ self.lateral
            z = spike(v - 0.8)
            outs.append(self.out(z))
        return torch.stack(outs)


class EpisodesByRows(Episodes):
    def cleared(self, value: Tensor, done: Tensor) -> Tensor:
        value = value.clone()
        value[done] = 0.0
        return value


class EpisodesByWhere(Episodes):
    def cleared(self, value: Tensor, done: Tensor) -> Tensor:
        return torch.where(done[:, None], torch.zeros_like(value), value)


class MaskInSinglePrecision(Cell):
    """A mask in float32 beside a membrane in float64: the derivative is rounded as the value is, not as the mask."""

    def step(self, current: Tensor, v: Tensor) -> State:
        v = 0.9 * v + current
        return spike(v - 0.8), v * (~(v > 0.8)).float()


class ParametersTakenApart(Cell):
    """Leak and gain of every neuron are the halves of one parameter."""

    def __init__(self) -> None:
        super().__init__()
        self.both = nn.Parameter(torch.cat([torch.zeros(HIDDEN) + 1.5, torch.ones(HIDDEN)]))

    def step(self, current: Tensor, v: Tensor) -> State:
        leak, gain = self.both.chunk(2)
        v = torch.sigmoid(leak) * v + gain * current
        z = spike(v - 0.8)
        return z, v - 0.8 * z


class CurrentOfAnImageTakenApart(Cell):
    """The same current at every step, put together of its columns again."""

    def forward(self, x: Tensor) -> Any:
        image, v, outs = x[0], x.new_zeros(x.shape[1], HIDDEN), []
        for x_t in x:
            columns = list(self.inp(image).unbind(1))
            columns[0] = columns[0] * 0.5
            v = 0.9 * v + torch.stack(columns, 1) + 0.1 * x_t.mean(1, keepdim=True)
            z = spike(v - 0.8)
            v = v - 0.8 * z
            outs.append(self.out(z))
        return torch.stack(outs)


WORKING: list[type[nn.Module]] = [
    ComparisonBesideSurrogate, TernaryByMask, TruthBetweenLayers, SpikesFromTheLastMembrane, LateralInhibitionAtOnce,
    SharedInhibitionAtOnce, NormalisedMembrane, WinnerTakesAll, AnySpikeHalvesAll, FeedbackWithinTheStep, Refractory,
    Countdown, Episodes, EpisodesByRows, EpisodesByWhere, MaskInSinglePrecision, InhibitedByTheLoudest,
    LearnedThresholdOfMixedMembranes, ParametersTakenApart, CurrentOfAnImageTakenApart,
]  # fmt: skip


@pytest.mark.parametrize("model", WORKING, ids=lambda model: model.__name__)
def test_is_converted(model: type[nn.Module]) -> None:
    require_right(Program(model))


@pytest.mark.parametrize("model", [SpikesFromTheLastMembrane, LateralInhibitionAtOnce])
def test_a_crossed_membrane_keeps_its_own_leak(model: type[nn.Module]) -> None:
    program = tracecompile.convert(model(), (torch.randn(6, 2, 6),)).program
    (layer,) = [layer for layer in program.layers if layer.states]
    (state,) = step_results(program.step)[1]
    assert state.name in layer.nodes
    assert layer.response.rows["next:0", layer.states[0]] == pytest.approx(0.9)
