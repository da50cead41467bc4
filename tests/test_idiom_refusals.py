"""What a hand-written loop may not do: refused at the user's line, with a way out, and the model left alone."""

from __future__ import annotations

import copy

import pytest
import torch
from models import FastSigmoid
from table.idiom_loops import StepsAsArgument, linear
from test_bad_input import refused
from torch import Tensor, nn
from torch.nn import functional as F

import tracecompile
from tracecompile.errors import (
    ConversionError,
    UnrollableLoop,
    UnsupportedControlFlow,
    UnsupportedOperation,
    UnsupportedState,
)
from tracecompile.runtime.module import session_of

spike = FastSigmoid.apply


class Loop(nn.Module):
    """A loop with places where the subclasses do what they should not."""

    def __init__(self) -> None:
        super().__init__()
        self.fc, self.drop = linear(6, 7), nn.Dropout(0.3)
        self.gains = nn.ParameterList(nn.Parameter(torch.ones(7)) for _ in range(20))
        self.calls = 0

    def forward(self, x: Tensor) -> Tensor:
        mem = x.new_zeros(x.shape[1], 7)
        fired = []
        for t in range(x.shape[0]):
            mem = 0.9 * mem + self.current(x, t)
            z = spike(self.distance(mem))
            mem = mem - z
            fired.append(self.after(z))
        return torch.stack(fired)

    def distance(self, mem: Tensor) -> Tensor:
        return mem - 1.0

    def current(self, x: Tensor, t: int) -> Tensor:
        return self.fc(x[t])

    def after(self, z: Tensor) -> Tensor:
        return z


class EveryOtherStep(Loop):
    def current(self, x: Tensor, t: int) -> Tensor:
        return self.fc(x[t]) if t % 2 else x.new_zeros(x.shape[1], 7)  # the line to blame


class FirstStepApart(Loop):
    def current(self, x: Tensor, t: int) -> Tensor:
        return self.fc(x[t]) * (2.0 if t == 0 else 1.0)  # the line to blame


class TimesTheStep(Loop):
    def current(self, x: Tensor, t: int) -> Tensor:
        return self.fc(x[t]) * (t + 1)  # the line to blame


class ParameterPerStep(Loop):
    def current(self, x: Tensor, t: int) -> Tensor:
        return self.fc(x[t]) * self.gains[t]  # the line to blame


class BranchOnData(Loop):
    def after(self, z: Tensor) -> Tensor:
        return z if z.sum() > 3 else 2 * z  # the line to blame


class DropoutPerStep(Loop):
    def after(self, z: Tensor) -> Tensor:
        return self.drop(z)  # the line to blame


class FunctionalDropoutPerStep(Loop):
    def after(self, z: Tensor) -> Tensor:
        return F.dropout(z, 0.3, self.training)  # the line to blame


class NoisePerStep(Loop):
    def current(self, x: Tensor, t: int) -> Tensor:
        return self.fc(x[t]) + torch.randn_like(x[t]).sum()  # the line to blame


class NoisyThreshold(Loop):
    def distance(self, mem: Tensor) -> Tensor:
        return mem - 1.0 + 0.1 * torch.randn_like(mem)  # the line to blame


class KeywordName(Loop):
    def __init__(self) -> None:
        super().__init__()
        self.layers = nn.ModuleDict({"in": linear(6, 7)})

    def current(self, x: Tensor, t: int) -> Tensor:
        return self.layers["in"](x[t])  # the line to blame


REFUSED = [
    (EveryOtherStep, UnrollableLoop),
    (FirstStepApart, UnrollableLoop),
    (TimesTheStep, UnrollableLoop),
    (ParameterPerStep, UnrollableLoop),
    (BranchOnData, UnsupportedControlFlow),
    (KeywordName, UnsupportedOperation),
]


@pytest.mark.parametrize(("kind", "error"), REFUSED, ids=[kind.__name__ for kind, _ in REFUSED])
def test_refused_at_the_line(kind: type[nn.Module], error: type[ConversionError]) -> None:
    model, x = kind(), torch.randn(10, 3, 6)
    with refused(model, error) as caught:
        tracecompile.convert(model, x)
    where = caught.value.where
    assert where is not None
    assert where.source.endswith("# the line to blame")
    assert caught.value.advice


DRAWING = [DropoutPerStep, FunctionalDropoutPerStep, NoisePerStep, NoisyThreshold]


@pytest.mark.parametrize("kind", DRAWING)
def test_the_analytic_rule_refuses_what_is_drawn_at_its_line(kind: type[nn.Module]) -> None:
    model, x = kind(), torch.randn(10, 3, 6)
    with refused(model, UnsupportedOperation) as caught:
        tracecompile.convert(model, x, rule="analytic")
    assert caught.value.where is not None
    assert caught.value.where.source.endswith("# the line to blame")


@pytest.mark.parametrize("kind", DRAWING)
@pytest.mark.parametrize("training", [True, False])
def test_what_is_drawn_is_no_obstacle(kind: type[nn.Module], training: bool) -> None:
    model, x = kind().train(training), torch.randn(10, 3, 6)
    net, found = tracecompile.convert(model, x), []
    twin = copy.deepcopy(model)
    for mode in (training, True):
        for module in (net.train(mode), twin.train(mode)):
            torch.manual_seed(0)
            found.append(module(x))
    assert torch.equal(found[0], found[1])
    assert torch.equal(found[2], found[3])


class LaterOn(Loop):
    """Changes after more steps than a short trace has."""

    def current(self, x: Tensor, t: int) -> Tensor:
        return self.fc(x[t]) if t > 7 else 0.5 * self.fc(x[t])


@pytest.mark.parametrize("steps", [6, 20])
def test_a_body_that_changes_later_on_is_refused_at_its_line(steps: int) -> None:
    model, x = LaterOn(), torch.randn(steps, 3, 6)
    with refused(model, UnrollableLoop) as caught:
        tracecompile.convert(model, x)
    assert caught.value.where is not None
    assert "t > 7" in caught.value.where.source


class CountsItsCalls(Loop):
    """Computes with a Python number that each call changes."""

    def forward(self, x: Tensor) -> Tensor:
        self.calls += 1
        return super().forward(x / self.calls)


def test_a_counter_that_is_computed_with() -> None:
    model, x = CountsItsCalls(), torch.randn(10, 3, 6)
    with refused(model, UnsupportedState):
        tracecompile.convert(model, x)


class RandomStart(Loop):
    """Each sequence starts from random membranes: drawn again at every call, in the model's own order."""

    def forward(self, x: Tensor) -> Tensor:
        mem = torch.rand(x.shape[1], 7, dtype=x.dtype)
        total = x.new_zeros(x.shape[1], 7)
        for x_t in x:
            mem = 0.9 * mem + self.fc(x_t)
            z = spike(mem - 1.0)
            mem = mem - z
            total = total + z
        return total


def test_a_random_start_is_drawn_at_every_call() -> None:
    model = RandomStart()
    net, x = tracecompile.convert(model, torch.randn(10, 3, 6)), torch.randn(8, 4, 6)
    results = []
    for seed in (1, 2):
        torch.manual_seed(seed)
        expected = model(x)
        torch.manual_seed(seed)
        results.append(net(x))
        assert torch.equal(results[-1], expected)
    assert not torch.equal(*results)


def test_another_number_of_steps_runs_that_many() -> None:
    model = StepsAsArgument()
    net = tracecompile.convert(model, (torch.randn(2, 6), 5))
    x, compiled = torch.randn(3, 6), session_of(net).compiled
    for steps in (1, 3, 20):
        assert torch.equal(net(x, steps), model(x, steps))
        assert torch.equal(net(x, num_steps=steps), model(x, steps))
    assert session_of(net).compiled is compiled, "the number of steps is symbolic: nothing has to be captured again"


class Levels(Loop):
    """A number that is compared in Python."""

    def forward(self, x: Tensor, level: int = 1) -> Tensor:
        return super().forward(x if level < 3 else 2 * x)


def test_another_number_is_captured_again() -> None:
    model = Levels()
    x = torch.randn(9, 3, 6)
    net = tracecompile.convert(model, (x, 1))
    for level in (2, 3, 5, 1):
        assert torch.equal(net(x, level), model(x, level)), level


class Modes(Loop):
    """Asks for the mode in Python, in a submodule's name too."""

    def after(self, z: Tensor) -> Tensor:
        return 1.25 * z if self.training else z


def test_the_other_mode_is_captured_again() -> None:
    model, x = Modes(), torch.randn(9, 3, 6)
    net = tracecompile.convert(model, x)
    for training in (True, False, True):
        assert torch.equal(net.train(training)(x), model.train(training)(x))


class NeuronMajor(nn.Module):
    """Neurons along the first axis, samples along the second; states that start as the number 0."""

    def __init__(self) -> None:
        super().__init__()
        self.weight = nn.Parameter(2 * torch.randn(6, 6))

    def forward(self, x: Tensor) -> Tensor:
        mem, total = 0.0, 0.0
        for x_t in x:
            mem = 0.9 * mem + self.weight @ x_t.t()
            z = spike(mem - 1.0)
            mem = mem - z
            total = total + z
        return total


def test_the_shape_of_a_state_is_no_coincidence() -> None:
    """With a batch as large as the layer is wide, the input has the shape of the membrane, transposed."""
    model = NeuronMajor()
    net = tracecompile.convert(model, torch.randn(6, 6, 6))
    for batch in (6, 3, 1):
        x = torch.randn(8, batch, 6)
        assert torch.equal(net(x), model(x))


def test_in_place_rectifier_dropout_and_norm() -> None:
    class Mixed(Loop):
        def __init__(self) -> None:
            super().__init__()
            self.norm = nn.BatchNorm1d(7)
            self.relu = nn.ReLU(inplace=True)

        def current(self, x: Tensor, t: int) -> Tensor:
            return self.drop(F.relu(self.relu(self.norm(self.fc(x[t]))), inplace=True))

    model = Mixed().eval()
    for module in model.modules():
        module.training = not isinstance(module, nn.Dropout)
    twin, x = copy.deepcopy(model), torch.randn(9, 3, 6)
    net = tracecompile.convert(model, torch.randn(5, 2, 6))
    assert torch.equal(net(x), twin(x))
    for (name, one), other in zip(net.named_buffers(), twin.buffers(), strict=True):
        torch.testing.assert_close(one, other, msg=name)
