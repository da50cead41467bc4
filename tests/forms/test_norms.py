"""Normalisations by what they compute: subclasses, functions, some written out, some frozen in part."""

from __future__ import annotations

from typing import Any

import pytest
import torch
from support.oracle import HIDDEN, INPUTS, OUTPUTS, PARTS, Program, require_refused, require_right, spike
from torch import Tensor, nn
from torch.nn import functional as F

import tracecompile

RUNS = ((3, 4), (11, 5), (23, 2))
"""Batches of more than one sample, which a normalisation needs."""


class Net(nn.Module):
    """A layer whose currents are normalised, leaky neurons, the mean of a readout."""

    def __init__(self, norm: nn.Module | None = None) -> None:
        super().__init__()
        self.inp, self.out = nn.Linear(INPUTS, HIDDEN), nn.Linear(HIDDEN, OUTPUTS)
        self.norm = norm if norm is not None else nn.Identity()

    def current(self, x_t: Tensor) -> Tensor:
        normalised: Tensor = self.norm(self.inp(x_t))
        return normalised

    def forward(self, x: Tensor) -> Tensor:
        v, total = x.new_zeros(x.shape[1], HIDDEN), torch.zeros(x.shape[1], OUTPUTS)
        for x_t in x:
            v = 0.7 * v + self.current(x_t)
            z = spike(v - 0.6)
            v = v * (1 - z)
            total = total + self.out(z)
        return total / x.shape[0]


# Classes of one's own that extend torch's.


class Scaled(nn.BatchNorm1d):
    """Scaled to the threshold."""

    def forward(self, x: Tensor) -> Tensor:
        return 0.8 * super().forward(x)


class Centred(nn.BatchNorm1d):
    """Calls the function with the buffers of its base, by name."""

    def forward(self, x: Tensor) -> Tensor:
        mean, variance = self.running_mean, self.running_var
        return F.batch_norm(x, mean, variance, weight=self.weight, training=self.training, momentum=0.3)


class WrittenLikeTorch(nn.BatchNorm1d):
    """Torch's own forward, copied and changed: statistics assigned anew, a counter."""

    def forward(self, x: Tensor) -> Tensor:
        if not self.training:
            return self.normalise(x, self.running_mean, self.running_var)
        mean, variance = x.mean(0), x.var(0, unbiased=False)
        count = x.numel() / x.size(1)
        with torch.no_grad():
            self.num_batches_tracked += 1
            self.running_mean = 0.2 * mean + 0.8 * self.running_mean
            self.running_var = 0.2 * variance * count / (count - 1) + 0.8 * self.running_var
        return self.normalise(x, mean, variance)

    def normalise(self, x: Tensor, mean: Tensor, variance: Tensor) -> Tensor:
        return (x - mean) / (variance + self.eps).sqrt() * self.weight + self.bias


# Modules of one's own.


class WrittenOut(nn.Module):
    """Mean and variance of the batch, running averages updated in place."""

    def __init__(self) -> None:
        super().__init__()
        self.gain, self.shift = nn.Parameter(torch.ones(HIDDEN)), nn.Parameter(torch.zeros(HIDDEN))
        self.register_buffer("running_mean", torch.zeros(HIDDEN))
        self.register_buffer("running_var", torch.ones(HIDDEN))

    def forward(self, x: Tensor) -> Tensor:
        mean, variance = self.running_mean, self.running_var
        if self.training:
            mean, variance = x.mean(0), x.var(0)
            with torch.no_grad():
                self.running_mean.lerp_(mean, 0.2)
                self.running_var.mul_(0.8).add_(variance, alpha=0.2)
        return self.gain * (x - mean) / (variance + 1e-5).sqrt() + self.shift


class Whitened(nn.Module):
    """By the mean square; the running average is detached, and assigned anew."""

    def __init__(self) -> None:
        super().__init__()
        self.register_buffer("running_power", torch.ones(HIDDEN))

    def forward(self, x: Tensor) -> Tensor:
        if not self.training:
            return x / (self.running_power + 1e-3).sqrt()
        power = (x * x).mean(0)
        self.running_power = 0.9 * self.running_power + 0.1 * power.detach()
        return x / (power + 1e-3).sqrt()


class ByFunction(nn.Module):
    """torch's function with buffers that are called otherwise, without weight and bias."""

    def __init__(self) -> None:
        super().__init__()
        self.register_buffer("running_centre", torch.full((HIDDEN,), 0.1))
        self.register_buffer("running_spread", torch.full((HIDDEN,), 2.0))

    def forward(self, x: Tensor) -> Tensor:
        return F.batch_norm(x, self.running_centre, self.running_spread, None, None, self.training, 0.05)


class PerSample(nn.Module):
    """Over the features of a sample, with running statistics that evaluation uses."""

    def __init__(self) -> None:
        super().__init__()
        self.norm = nn.InstanceNorm1d(1, affine=True, track_running_stats=True)

    def forward(self, x: Tensor) -> Tensor:
        normalised: Tensor = self.norm(x.unsqueeze(1)).squeeze(1)
        return normalised


NORMS: dict[str, Any] = {
    "batch norm": lambda: nn.BatchNorm1d(HIDDEN),
    "cumulative": lambda: nn.BatchNorm1d(HIDDEN, momentum=None),
    "without running statistics": lambda: nn.BatchNorm1d(HIDDEN, track_running_stats=False),
    "in a container": lambda: nn.Sequential(nn.LayerNorm(HIDDEN), nn.BatchNorm1d(HIDDEN, affine=False)),
    "groups": lambda: nn.GroupNorm(2, HIDDEN),
    "scaled": lambda: Scaled(HIDDEN),
    "centred": lambda: Centred(HIDDEN),
    "like torch": lambda: WrittenLikeTorch(HIDDEN),
    "written out": WrittenOut,
    "whitened": Whitened,
    "by function": ByFunction,
    "per sample": PerSample,
}


@pytest.mark.parametrize("name", NORMS)
def test_a_norm_is_what_it_computes(name: str) -> None:
    require_right(Program(lambda: Net(NORMS[name]()), runs=RUNS, trained=False))


class Convolutions(nn.Module):
    """A scaled norm over the maps of a convolution."""

    class Norm(nn.BatchNorm2d):
        def forward(self, x: Tensor) -> Tensor:
            return 0.9 * super().forward(x)

    def __init__(self) -> None:
        super().__init__()
        self.conv, self.norm = nn.Conv2d(1, 3, 3, padding=1, bias=False), self.Norm(3)
        self.out = nn.Linear(3 * INPUTS, OUTPUTS)

    def forward(self, x: Tensor) -> Tensor:
        v, total = torch.zeros(x.shape[1], 3, 2, INPUTS // 2), 0.0
        for x_t in x:
            v = 0.7 * v + self.norm(self.conv(x_t.unflatten(1, (1, 2, INPUTS // 2))))
            z = spike(v - 0.5)
            v = v * (1 - z)
            total = total + self.out(z.flatten(1))
        return total / x.shape[0]


def test_a_scaled_norm_over_maps() -> None:
    require_right(Program(Convolutions, runs=RUNS))


class TwicePerStep(Net):
    def current(self, x_t: Tensor) -> Tensor:
        normalised: Tensor = self.norm(self.norm(self.inp(x_t)) + 0.1)
        return normalised


@pytest.mark.parametrize("name", ["batch norm", "scaled", "like torch", "written out"])
def test_a_norm_that_is_called_twice_a_step_moves_twice(name: str) -> None:
    require_right(Program(lambda: TwicePerStep(NORMS[name]()), runs=RUNS, trained=False), parts=PARTS[:2])


class OneStep(nn.Module):
    """One step per call, the membrane kept in an attribute."""

    def __init__(self, norm: nn.Module) -> None:
        super().__init__()
        self.inp, self.norm, self.out = nn.Linear(INPUTS, HIDDEN), norm, nn.Linear(HIDDEN, OUTPUTS)
        self.mem: Tensor | None = None

    def reset(self) -> None:
        self.mem = None

    def forward(self, x_t: Tensor) -> Tensor:
        mem = x_t.new_zeros(x_t.shape[0], HIDDEN) if self.mem is None else self.mem
        mem = 0.7 * mem + self.norm(self.inp(x_t))
        z = spike(mem - 0.6)
        self.mem = mem * (1 - z)
        output: Tensor = self.out(z)
        return output


@pytest.mark.parametrize("name", ["batch norm", "scaled", "like torch", "written out", "by function"])
def test_a_norm_in_a_model_of_one_step(name: str) -> None:
    require_right(Program(lambda: OneStep(NORMS[name]()), step=True, runs=RUNS, trained=False))


# Frozen, in part or from within.


class FrozenByTrain(Net):
    def train(self, mode: bool = True) -> FrozenByTrain:
        super().train(mode)
        self.norm.eval()
        return self


class FrozenBelow(Net):
    """The part that freezes itself is not the model but a part of it."""

    class Frozen(nn.Sequential):
        def train(self, mode: bool = True) -> FrozenBelow.Frozen:
            super().train(False)
            return self

    def __init__(self, norm: nn.Module) -> None:
        super().__init__(self.Frozen(norm, nn.BatchNorm1d(HIDDEN)))


class EvaluatesInForward(Net):
    def forward(self, x: Tensor) -> Tensor:
        self.norm.eval()
        return super().forward(x)


class EvaluatesForAWhile(Net):
    def forward(self, x: Tensor) -> Tensor:
        before = self.norm.training
        self.norm.train(False)
        result = super().forward(x)
        self.norm.train(before)
        return result


class AlwaysTrains(Net):
    """Statistics of the batch in evaluation too, as adaptation at test time has it."""

    def current(self, x_t: Tensor) -> Tensor:
        return F.batch_norm(self.inp(x_t), self.norm.running_mean, self.norm.running_var, training=True)


def set_to_something(model: nn.Module) -> None:
    """Gives the running statistics values of which each is another."""
    for name, buffer in model.named_buffers():
        if "running" in name:
            buffer.copy_(torch.linspace(0.4, 1.6, HIDDEN))


FROZEN = [(kind, "batch norm") for kind in (FrozenByTrain, FrozenBelow, EvaluatesInForward, EvaluatesForAWhile)]
FROZEN += [(FrozenByTrain, "scaled"), (EvaluatesInForward, "scaled"), (AlwaysTrains, "batch norm")]


@pytest.mark.parametrize(("kind", "name"), FROZEN)
def test_a_frozen_norm_stays_frozen(kind: type[Net], name: str) -> None:
    program = Program(lambda: kind(NORMS[name]()), runs=RUNS, prepare=set_to_something, trained=False, fires=False)
    require_right(program, parts=PARTS[:2])


def test_a_part_that_the_user_froze_before_conversion_stays_frozen() -> None:
    model, twin = Net(nn.BatchNorm1d(HIDDEN)), Net(nn.BatchNorm1d(HIDDEN))
    twin.load_state_dict(model.state_dict())
    model.norm.eval()
    net = tracecompile.convert(model, 2 * torch.randn(6, 2, INPUTS), backend="eager")
    twin.norm.eval()
    x = 2 * torch.randn(9, 3, INPUTS)
    assert torch.equal(net(x), twin(x))
    assert not model.norm.training
    assert model.training
    net.train()
    twin.train()
    assert torch.equal(net(x), twin(x)), "train() is the model's own, and reaches all parts"
    assert torch.equal(model.norm.running_mean, twin.norm.running_mean)


class CumulativeOfOnesOwn(Net):
    """The factor of the average is a number that the model reads from its counter."""

    def __init__(self) -> None:
        super().__init__(Scaled(HIDDEN, momentum=None))


def test_a_counter_that_python_reads_is_refused_at_the_users_line() -> None:
    require_refused(Program(CumulativeOfOnesOwn, runs=RUNS, trained=False))
