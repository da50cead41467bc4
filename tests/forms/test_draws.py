"""Random numbers within a step: dropout and noise of every kind are those of the model, and so are the gradients."""

from __future__ import annotations

from typing import Any

import pytest
import torch
import torch.nn.functional as F
from support.oracle import HIDDEN, INPUTS, OUTPUTS, Program, require_refused, require_right, spike
from torch import Tensor, nn

import tracecompile
from forms.cells import Cell


class Two(nn.Module):
    """Two layers; the subclasses draw."""

    def __init__(self) -> None:
        super().__init__()
        self.first, self.second = nn.Linear(INPUTS, HIDDEN), nn.Linear(HIDDEN, HIDDEN)
        self.out, self.drop = nn.Linear(HIDDEN, OUTPUTS), nn.Dropout(0.3)

    def fire(self, current: Tensor, v: Tensor, threshold: Any = 0.8) -> tuple[Tensor, Tensor]:
        v = 0.9 * v + current
        z = spike(v - threshold)
        return z, v - 0.8 * z

    def step(self, x: Tensor, v: Tensor, w: Tensor) -> tuple[Tensor, Tensor, Tensor]:
        z, v = self.fire(self.first(x), v)
        q, w = self.fire(self.second(z), w)
        return self.out(q), v, w

    def forward(self, x: Tensor) -> Any:
        v, outs = x.new_zeros(x.shape[1], HIDDEN), []
        w = torch.zeros_like(v)
        for x_t in x:
            y, v, w = self.step(x_t, v, w)
            outs.append(y)
        return torch.stack(outs)


class DropsInputs(Two):
    def step(self, x: Tensor, v: Tensor, w: Tensor) -> tuple[Tensor, Tensor, Tensor]:
        return super().step(self.drop(x), v, w)


class DropsSpikes(Two):
    """One layer for two masks, of which the second reaches the output alone."""

    def step(self, x: Tensor, v: Tensor, w: Tensor) -> tuple[Tensor, Tensor, Tensor]:
        z, v = self.fire(self.first(x), v)
        q, w = self.fire(self.second(self.drop(z)), w)
        return self.out(self.drop(q)), v, w


class DropsStates(Two):
    def step(self, x: Tensor, v: Tensor, w: Tensor) -> tuple[Tensor, Tensor, Tensor]:
        return super().step(x, F.dropout(v, 0.2, self.training), w)


class DropsBetweenProducts(Two):
    """No neuron is next to the mask."""

    def __init__(self) -> None:
        super().__init__()
        self.middle = nn.Sequential(nn.Linear(HIDDEN, HIDDEN), nn.ReLU(), nn.Dropout(0.3))

    def step(self, x: Tensor, v: Tensor, w: Tensor) -> tuple[Tensor, Tensor, Tensor]:
        z, v = self.fire(self.first(x), v)
        q, w = self.fire(self.second(self.middle(z)), w)
        return self.out(q), v, w


class DropsNormalised(Two):
    def __init__(self) -> None:
        super().__init__()
        self.first = nn.Linear(INPUTS, HIDDEN, bias=False)
        self.norm, self.other = nn.BatchNorm1d(HIDDEN), nn.LayerNorm(HIDDEN)

    def step(self, x: Tensor, v: Tensor, w: Tensor) -> tuple[Tensor, Tensor, Tensor]:
        z, v = self.fire(self.drop(self.norm(self.first(x))), v)
        q, w = self.fire(self.other(self.second(self.drop(z))), w)
        return self.out(q), v, w


class Lateral(Two):
    """Masks on what comes back, on a current, and on spikes that are handed on to the next step."""

    def __init__(self) -> None:
        super().__init__()
        self.back = nn.Linear(HIDDEN, HIDDEN)

    def forward(self, x: Tensor) -> Any:
        v, outs = x.new_zeros(x.shape[1], HIDDEN), []
        w, last, kept = torch.zeros_like(v), torch.zeros_like(v), torch.zeros_like(v)
        for x_t in x:
            last, v = self.fire(self.first(x_t) + self.back(self.drop(last)), v)
            z, w = self.fire(self.drop(self.second(last)) + self.back(kept), w)
            kept = self.drop(z)
            outs.append(self.out(z))
        return torch.stack(outs)


class Images(nn.Module):
    """Whole channels, in either layout, and states that begin as numbers."""

    def __init__(self, layout: torch.memory_format) -> None:
        super().__init__()
        self.layout, self.below = layout, nn.Conv2d(1, 3, 3, padding=1)
        self.above, self.out = nn.Conv2d(3, 3, 3, stride=2), nn.Linear(12, OUTPUTS)
        self.channels, self.pixels = nn.Dropout2d(0.3), nn.Dropout(0.2)
        self.to(memory_format=layout)

    def forward(self, x: Tensor) -> Tensor:
        v: Any = 0
        w: Any = 0
        outs = []
        for x_t in x:
            v = 0.9 * v + self.pixels(self.below(x_t.contiguous(memory_format=self.layout)))
            z = spike(v - 0.4)
            v = v - 0.4 * z
            w = 0.9 * w + self.channels(self.above(self.pixels(z)))
            q = spike(w - 0.2)
            w = w - 0.2 * q
            outs.append(self.out(q.flatten(1)))
        return torch.stack(outs)


class SaturatesWhatItDrops(Two):
    def step(self, x: Tensor, v: Tensor, w: Tensor) -> tuple[Tensor, Tensor, Tensor]:
        z, v = self.fire(F.alpha_dropout(self.first(x), 0.2, self.training), v)
        q, w = self.fire(self.second(z), w)
        return self.out(q), v, w


class NoisyThreshold(Two):
    """And a noisy output, of a size that is no tensor's."""

    def step(self, x: Tensor, v: Tensor, w: Tensor) -> tuple[Tensor, Tensor, Tensor]:
        z, v = self.fire(self.first(x), v, 0.8 + 0.1 * torch.randn_like(v))
        q, w = self.fire(self.second(z), w)
        return self.out(q) + 0.1 * torch.randn(len(q), OUTPUTS, dtype=q.dtype), v, w


class LearnsItsNoise(Two):
    """The strength of the noise is trained; in one layer a rectifier comes after it."""

    def __init__(self) -> None:
        super().__init__()
        self.strength = nn.Parameter(torch.full((HIDDEN,), 0.2))

    def step(self, x: Tensor, v: Tensor, w: Tensor) -> tuple[Tensor, Tensor, Tensor]:
        z, v = self.fire(self.first(x) + self.strength * torch.randn_like(v), v)
        q, w = self.fire(torch.relu(self.second(z) + self.strength * torch.rand_like(w)), w)
        return self.out(q), v, w


class DrawsInAnotherOrder(Two):
    """What is drawn first is needed last."""

    def step(self, x: Tensor, v: Tensor, w: Tensor) -> tuple[Tensor, Tensor, Tensor]:
        above, below = torch.randn_like(w), torch.rand(v.shape, dtype=v.dtype)
        z, v = self.fire(self.first(x) + below, v)
        q, w = self.fire(self.second(z) + 0.1 * above, w)
        return self.out(self.drop(q)), v, w


class NoiseInTraining(Two):
    def step(self, x: Tensor, v: Tensor, w: Tensor) -> tuple[Tensor, Tensor, Tensor]:
        noise = 0.2 * torch.randn_like(x) if self.training else 0.0
        return super().step(x + noise, v, w)


class NoiseThroughWeights(Two):
    def step(self, x: Tensor, v: Tensor, w: Tensor) -> tuple[Tensor, Tensor, Tensor]:
        noise = torch.empty(len(x), INPUTS, dtype=x.dtype).uniform_(-1, 1)
        z, v = self.fire(self.first(x) + self.first(noise), v)
        q, w = self.fire(self.second(z) + torch.randn_like(z).sum(), w)
        return self.out(q), v, w


class EscapeNoise(Two):
    """Spikes by chance, with a surrogate."""

    def step(self, x: Tensor, v: Tensor, w: Tensor) -> tuple[Tensor, Tensor, Tensor]:
        v = 0.9 * v + self.first(x)
        z = spike(torch.sigmoid(4 * v - 2) - torch.rand_like(v))
        q, w = self.fire(self.second(z), w)
        return self.out(q), v - 0.5 * z, w


class SpikesByChance(Two):
    """Spikes by chance, straight through: the probability is a value that the step computes."""

    def step(self, x: Tensor, v: Tensor, w: Tensor) -> tuple[Tensor, Tensor, Tensor]:
        v = 0.9 * v + self.first(x)
        share = torch.sigmoid(4 * v - 2)
        z = torch.bernoulli(share) + share - share.detach()
        q, w = self.fire(self.second(z), w)
        return self.out(q), v - z.detach(), w


class EncodesByRate(Two):
    """Probabilities that the inputs decide, and one that is the same at every step."""

    def forward(self, x: Tensor) -> Any:
        self.rate = torch.sigmoid(x.mean(0))
        return super().forward(x)

    def step(self, x: Tensor, v: Tensor, w: Tensor) -> tuple[Tensor, Tensor, Tensor]:
        return super().step(
            torch.bernoulli(torch.sigmoid(x)) + torch.bernoulli(self.rate) + torch.poisson(x.abs()), v, w
        )


class EncodesByComparison(Two):
    def step(self, x: Tensor, v: Tensor, w: Tensor) -> tuple[Tensor, Tensor, Tensor]:
        return super().step((torch.rand_like(x) < x).to(x.dtype), v, w)


class OneLoopAfterAnother(Two):
    """Only one of them draws."""

    def forward(self, x: Tensor) -> Any:
        v, zs, outs = x.new_zeros(x.shape[1], HIDDEN), [], []
        w = torch.zeros_like(v)
        for x_t in x:
            z, v = self.fire(self.drop(self.first(x_t)), v)
            zs.append(z)
        for z in zs:
            q, w = self.fire(self.second(z), w)
            outs.append(self.out(q))
        return torch.stack(outs)


class DropsAllStepsAtOnce(Two):
    """A draw for each value of a whole sequence, between two loops."""

    def forward(self, x: Tensor) -> Any:
        v, zs, outs = x.new_zeros(x.shape[1], HIDDEN), [], []
        w = torch.zeros_like(v)
        for x_t in x:
            z, v = self.fire(self.first(x_t), v)
            zs.append(z)
        for z in self.drop(torch.stack(zs)):
            q, w = self.fire(self.second(z), w)
            outs.append(self.out(q))
        return torch.stack(outs)


class BeforeWithinAndAfter(Two):
    def forward(self, x: Tensor) -> Any:
        return F.dropout(super().forward(self.drop(x)), 0.2, self.training).mean(0)

    def step(self, x: Tensor, v: Tensor, w: Tensor) -> tuple[Tensor, Tensor, Tensor]:
        return super().step(x, v, self.drop(w))


FORMS: list[type[nn.Module]] = [
    DropsInputs, DropsSpikes, DropsStates, DropsBetweenProducts, Lateral, SaturatesWhatItDrops, NoisyThreshold,
    LearnsItsNoise, DrawsInAnotherOrder, NoiseInTraining, NoiseThroughWeights, EscapeNoise, SpikesByChance,
    EncodesByRate, EncodesByComparison, OneLoopAfterAnother, DropsAllStepsAtOnce,
    BeforeWithinAndAfter,
]  # fmt: skip


@pytest.mark.parametrize("model", FORMS, ids=lambda model: model.__name__)
def test_a_step_draws_as_the_model_does(model: type[nn.Module]) -> None:
    require_right(Program(model))


def test_masks_beside_normalisations() -> None:
    require_right(Program(DropsNormalised, trained=False, runs=((11, 5), (23, 2))))


@pytest.mark.parametrize("layout", [torch.contiguous_format, torch.channels_last])
def test_channels_are_dropped_in_either_layout(layout: torch.memory_format) -> None:
    require_right(Program(lambda: Images(layout), inputs=lambda steps, batch: torch.rand(steps, batch, 1, 6, 6)))


# One step a call.


class OneStep(Two):
    """The caller holds the states."""

    def forward(self, x: Tensor, state: Any) -> Any:
        y, v, w = self.step(self.drop(x), *state)
        return y, (v, F.dropout(w, 0.1, self.training))


class OneStepOfItsOwn(Two):
    """It holds its membranes itself."""

    def __init__(self) -> None:
        super().__init__()
        self.reset()

    def reset(self) -> None:
        self.v: Any = None
        self.w: Any = None

    def forward(self, x: Tensor) -> Any:
        if self.v is None:
            self.v = self.w = x.new_zeros(len(x), HIDDEN)
        y, self.v, self.w = self.step(x + 0.3 * torch.randn_like(x), self.v, self.drop(self.w))
        return y


def both_states(batch: int) -> tuple[Any, ...]:
    return ((torch.zeros(batch, HIDDEN), torch.zeros(batch, HIDDEN)),)


def test_a_model_of_one_step_draws_as_the_model_does() -> None:
    require_right(Program(OneStep, step=True, start=both_states, returns_state=True))
    require_right(Program(OneStepOfItsOwn, step=True))


# What cannot be drawn before the step is computed.


class DrawsFromItsState(Cell):
    def step(self, current: Tensor, v: Tensor) -> tuple[Tensor, Tensor]:
        v = 0.9 * v + torch.normal(current, 0.1)  # drawn
        z = spike(v - 0.8)
        return z, v - 0.8 * z


class CountsByChance(Cell):
    def step(self, current: Tensor, v: Tensor) -> tuple[Tensor, Tensor]:
        v = 0.9 * v + current
        z = spike(v - 0.8)
        return z + torch.poisson(v.abs()), v - 0.8 * z  # drawn


class LooksAtAShape(Cell):
    """A normalisation that runs for a shape alone."""

    def __init__(self) -> None:
        super().__init__()
        self.norm = nn.BatchNorm1d(HIDDEN)

    def step(self, current: Tensor, v: Tensor) -> tuple[Tensor, Tensor]:
        v = 0.9 * v + current + torch.rand_like(self.norm(current))  # drawn
        z = spike(v - 0.8)
        return z, v - 0.8 * z


class OwnGenerator(Cell):
    def __init__(self) -> None:
        super().__init__()
        self.generator = torch.Generator().manual_seed(0)

    def step(self, current: Tensor, v: Tensor) -> tuple[Tensor, Tensor]:
        v = 0.9 * v + current + torch.rand(current.shape, generator=self.generator)  # drawn
        z = spike(v - 0.8)
        return z, v - 0.8 * z


class BothLoopsDraw(Two):
    def forward(self, x: Tensor) -> Any:
        v, zs, outs = x.new_zeros(x.shape[1], HIDDEN), [], []
        w = torch.zeros_like(v)
        for x_t in x:
            z, v = self.fire(self.drop(self.first(x_t)), v)
            zs.append(z)
        for z in zs:
            q, w = self.fire(F.dropout(self.second(z), 0.2, self.training), w)  # drawn
            outs.append(self.out(q))
        return torch.stack(outs)


class DropsWithin(Two):
    """A dropout that is a part of another layer."""

    def __init__(self) -> None:
        super().__init__()
        self.mixed = nn.TransformerEncoderLayer(HIDDEN, 2, 8, batch_first=True)

    def step(self, x: Tensor, v: Tensor, w: Tensor) -> tuple[Tensor, Tensor, Tensor]:
        z, v = self.fire(self.first(x), v)
        q, w = self.fire(self.mixed(z.unsqueeze(1)).squeeze(1), w)  # drawn
        return self.out(q), v, w


class LooksOn(Two):
    """A hook would see no value of what is dropped."""

    def __init__(self) -> None:
        super().__init__()
        self.drop.register_forward_hook(lambda module, given, made: None)

    def step(self, x: Tensor, v: Tensor, w: Tensor) -> tuple[Tensor, Tensor, Tensor]:
        return super().step(self.drop(x), v, w)  # drawn


REFUSED: list[type[nn.Module]] = [
    DrawsFromItsState, CountsByChance, LooksAtAShape, OwnGenerator, BothLoopsDraw, DropsWithin, LooksOn,
]  # fmt: skip


@pytest.mark.parametrize("model", REFUSED, ids=lambda model: model.__name__)
def test_is_refused_at_its_line(model: type[nn.Module]) -> None:
    require_refused(Program(model, trained=False), line="# drawn")


class Named(nn.Module):
    """Neurons that are modules, with a dropout after each."""

    def __init__(self) -> None:
        super().__init__()
        self.below, self.above = nn.Linear(INPUTS, HIDDEN), nn.Linear(HIDDEN, OUTPUTS)
        self.hidden, self.top = Neurons(), Neurons()
        self.drop = nn.Dropout(0.2)

    def forward(self, x: Tensor) -> Tensor:
        v, w, outs = x.new_zeros(x.shape[1], HIDDEN), x.new_zeros(x.shape[1], OUTPUTS), []
        for x_t in x:
            z, v = self.hidden(self.below(x_t), v)
            q, w = self.top(self.above(self.drop(z)), w)
            outs.append(self.drop(q))
        return torch.stack(outs)


class Neurons(nn.Module):
    def forward(self, current: Tensor, v: Tensor) -> tuple[Tensor, Tensor]:
        v = 0.9 * v + current
        z = spike(v - 0.8)
        return z, v - 0.8 * z


def test_neurons_keep_their_names_behind_a_mask() -> None:
    net = tracecompile.convert(Named(), torch.randn(6, 2, INPUTS))
    assert [(layer.name, layer.kind) for layer in net.report.layers] == [("hidden", "spiking"), ("top", "spiking")]
