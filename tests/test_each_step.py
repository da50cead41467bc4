"""Networks that run layer by layer over the whole sequence, between whose layers something is computed on all steps."""

from __future__ import annotations

import copy
from collections.abc import Callable
from typing import Any

import pytest
import torch
from models import FastSigmoid
from torch import Tensor, nn

import tracecompile
from tracecompile.capture import capture_program
from tracecompile.errors import ConversionError, UnrollableLoop, UnsupportedState

INPUTS, HIDDEN, CLASSES = 4, 6, 3


class Neurons(nn.Module):
    """Leaky neurons over the whole sequence, time along an axis."""

    def __init__(self, axis: int = 0, preallocated: bool = False) -> None:
        super().__init__()
        self.axis = axis
        self.preallocated = preallocated

    def forward(self, x: Tensor) -> Tensor:
        mem = torch.zeros_like(x.select(self.axis, 0))
        spikes, out = [], torch.zeros_like(x)
        for t, x_t in enumerate(x.unbind(self.axis)):
            mem = 0.8 * mem + x_t
            spk = FastSigmoid.apply(mem - 1.0)
            mem = mem - spk.detach()
            if self.preallocated:
                out[t if self.axis == 0 else (slice(None), t)] = spk
            spikes.append(spk)
        return out if self.preallocated else torch.stack(spikes, self.axis)


class LayerByLayer(nn.Module):
    """Two layers with something between them."""

    def __init__(
        self, between: Callable[[LayerByLayer, Tensor], Tensor], axis: int = 0, preallocated: bool = False
    ) -> None:
        super().__init__()
        self.between = between
        self.fc1 = nn.Linear(INPUTS, HIDDEN)
        self.first = Neurons(axis, preallocated)
        self.fc2 = nn.Linear(HIDDEN, CLASSES)
        self.norm = nn.BatchNorm1d(HIDDEN)
        self.second = Neurons(axis)

    def forward(self, x: Tensor) -> Tensor:
        return self.second(self.between(self, self.first(self.fc1(x))))


def linear(model: LayerByLayer, z: Tensor) -> Tensor:
    return 3 * model.fc2(z)


def functional(model: LayerByLayer, z: Tensor) -> Tensor:
    return nn.functional.linear(z, model.fc2.weight, model.fc2.bias) * torch.arange(1, 4)


def merged(model: LayerByLayer, z: Tensor) -> Tensor:
    one, other, width = z.shape
    return 3 * model.fc2(z.reshape(one * other, width)).view(one, other, CLASSES)


def residual(model: LayerByLayer, z: Tensor) -> Tensor:
    return torch.relu(z + 0.5 * z.clone()) * 1.2 - model.fc2.bias.sum()


BETWEEN = [linear, functional, merged, residual]


@pytest.mark.parametrize("preallocated", [False, True])
@pytest.mark.parametrize("axis", [0, 1])
@pytest.mark.parametrize("between", BETWEEN)
def test_values_and_gradients_are_those_of_the_model(
    between: Callable[[LayerByLayer, Tensor], Tensor], axis: int, preallocated: bool
) -> None:
    torch.manual_seed(0)
    model = LayerByLayer(between, axis, preallocated).double()

    def inputs(steps: int, batch: int) -> Tensor:
        x = 5 * torch.randn(steps, batch, INPUTS, dtype=torch.float64)
        return x if axis == 0 else x.movedim(0, 1).contiguous()

    net = tracecompile.convert(model, inputs(5, 2), bins=9)
    x = inputs(9, 4)
    expected, found = model(x), net(x)
    assert 0 < expected.mean() < 1
    assert torch.equal(found, expected)
    weights = torch.randn_like(expected)
    wanted = torch.autograd.grad((expected * weights).sum(), list(model.parameters()), allow_unused=True)
    (found * weights).sum().backward()
    live = 0
    for gradient, parameter in zip(wanted, model.parameters(), strict=True):
        if gradient is not None:
            live += bool(gradient.any())
            assert (parameter.grad - gradient).norm() <= 1e-9 * gradient.norm()
    assert live >= 3


class StepByStep(LayerByLayer):
    """The same network, all layers at every step."""

    def forward(self, x: Tensor) -> Tensor:
        one = two = None
        spikes = []
        for current in self.fc1(x):
            one = torch.zeros_like(current) if one is None else one
            one = 0.8 * one + current
            spk = FastSigmoid.apply(one - 1.0)
            one = one - spk.detach()
            current = 3 * self.fc2(spk)
            two = torch.zeros_like(current) if two is None else two
            two = 0.8 * two + current
            spk = FastSigmoid.apply(two - 1.0)
            two = two - spk.detach()
            spikes.append(spk)
        return torch.stack(spikes)


def test_the_step_is_that_of_a_network_written_step_by_step() -> None:
    x = 5 * torch.randn(5, 2, INPUTS)
    layers = capture_program(LayerByLayer(linear), (x,), {})
    steps = capture_program(StepByStep(linear), (x,), {})

    def operations(program: Any) -> list[str]:
        return [str(node.target) for node in program.step.graph.nodes if node.op.startswith("call_")]

    assert len(layers.carries) == len(steps.carries) == 2
    assert operations(layers) == operations(steps)


def test_what_may_round_otherwise_is_in_the_report() -> None:
    net = tracecompile.convert(LayerByLayer(linear), 5 * torch.randn(5, 2, INPUTS))
    assert any("fc2" in note and "rounding" in note for note in net.report.notes)


def normalised(model: LayerByLayer, z: Tensor) -> Tensor:
    return 5 * model.norm(z.flatten(0, 1)).view(z.shape)


MIXING = {
    "a cumulative product": lambda model, z: 3 * model.fc2((1.5 - z).cumprod(0)),
    "a mean over time": lambda model, z: 3 * model.fc2(z - z.mean(0)),
    "a softmax over time": lambda model, z: 9 * model.fc2(torch.softmax(z, 0)),
    "a shift": lambda model, z: 3 * model.fc2(torch.roll(z, 1, 0)),
    "a normalisation": normalised,
}


@pytest.mark.parametrize("rule", ["measured", "exact"])
@pytest.mark.parametrize("between", MIXING.values(), ids=MIXING.keys())
def test_what_mixes_time_steps_is_done_before_the_next_loop(
    between: Callable[[LayerByLayer, Tensor], Tensor], rule: Any
) -> None:
    torch.manual_seed(0)
    model = LayerByLayer(between).double()
    twin = copy.deepcopy(model)
    options = {"bins": 9} if rule == "measured" else {}
    net = tracecompile.convert(model, 5 * torch.randn(5, 2, INPUTS).double(), rule=rule, **options)
    x = 5 * torch.randn(9, 4, INPUTS).double()
    expected, found = twin(x), net(x)
    assert 0 < expected.mean() < 1
    assert torch.equal(found, expected)
    weights = torch.randn_like(expected)
    (expected * weights).sum().backward()
    (found * weights).sum().backward()
    live = 0
    for parameter, of_twin in zip(model.parameters(), twin.parameters(), strict=True):
        if of_twin.grad is not None:
            live += bool(of_twin.grad.norm() > 1e-3)
            assert (parameter.grad - of_twin.grad).norm() <= 1e-9 * of_twin.grad.norm() + 1e-12
    assert live >= 3


def backwards(model: LayerByLayer, z: Tensor) -> Tensor:
    return 3 * model.fc2(z.flip(0))


def test_a_loop_that_goes_backwards_through_another_is_refused() -> None:
    with pytest.raises(UnrollableLoop):
        tracecompile.convert(LayerByLayer(backwards), 5 * torch.randn(5, 2, INPUTS))


def test_it_is_refused_whatever_the_example_shows() -> None:
    model = LayerByLayer(backwards)
    nn.init.zeros_(model.fc1.bias)
    x = torch.zeros(5, 2, INPUTS)
    assert not model.first(model.fc1(x)).any(), "the example shows a spike"
    with pytest.raises(UnrollableLoop):
        tracecompile.convert(model, x)


class RequiresGrad(nn.Module):
    """Switches requires_grad of something."""

    def __init__(self, of: str) -> None:
        super().__init__()
        self.of = of
        self.fc = nn.Linear(INPUTS, HIDDEN)

    def forward(self, x: Tensor) -> Tensor:
        mem = torch.zeros(x.shape[1], HIDDEN)
        value = {"state": mem, "input": x, "weight": self.fc.weight}[self.of]
        value.requires_grad = self.of != "weight"
        for x_t in x:
            mem = 0.8 * mem + self.fc(x_t)
            mem = mem - FastSigmoid.apply(mem - 1.0)
        return mem


def test_a_state_may_require_grad() -> None:
    model = RequiresGrad("state")
    x = 3 * torch.randn(5, 2, INPUTS)
    net = tracecompile.convert(model, x)
    assert torch.equal(net(x), model(x))


@pytest.mark.parametrize("of", ["input", "weight"])
def test_the_users_own_tensors_must_not_be_switched(of: str) -> None:
    model = RequiresGrad(of)
    with pytest.raises(UnsupportedState, match="requires_grad") as caught:
        tracecompile.convert(model, 3 * torch.randn(5, 2, INPUTS))
    assert isinstance(caught.value, ConversionError)
    assert "value.requires_grad" in caught.value.where.source
    assert model.fc.weight.requires_grad
