"""What random programs of users brought to light, one small model each."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass
from types import SimpleNamespace
from typing import Any

import pytest
import torch
from support.oracle import HIDDEN, INPUTS, OUTPUTS, Program, require_refused, require_right, spike
from torch import Tensor, nn

import tracecompile
from tracecompile.errors import ConversionError


class Net(nn.Module):
    """Leaky neurons and a readout; the classes below differ in one thing each."""

    def __init__(self) -> None:
        super().__init__()
        self.inp, self.out = nn.Linear(INPUTS, HIDDEN), nn.Linear(HIDDEN, OUTPUTS)

    def reset_by(self, v: Tensor, z: Tensor) -> Tensor:
        return v - 0.5 * z

    def returned(self, outputs: Tensor, spikes: Tensor) -> Any:
        return outputs, spikes

    def forward(self, x: Tensor) -> Any:
        v, outputs, spikes = x.new_zeros(x.shape[1], HIDDEN), [], []
        for x_t in x:
            v = 0.8 * v + self.inp(x_t)
            z = spike(v - 0.5)
            v = self.reset_by(v, z)
            outputs.append(self.out(z))
            spikes.append(z)
        return self.returned(torch.stack(outputs), torch.stack(spikes))


@dataclass
class Result:
    outputs: Tensor
    spikes: Tensor
    note: str = "all"


@dataclass(frozen=True)
class Pair:
    first: Result
    second: Result
    nothing: Tensor | None = None


class ReturnsDataclass(Net):
    def returned(self, outputs: Tensor, spikes: Tensor) -> Any:
        return Result(outputs, spikes)


class ReturnsNestedDataclasses(Net):
    def returned(self, outputs: Tensor, spikes: Tensor) -> Any:
        return {"pair": Pair(Result(outputs, spikes), Result(spikes.mean(0), outputs, "reduced"))}


class ReturnsNamespace(Net):
    def returned(self, outputs: Tensor, spikes: Tensor) -> Any:
        return SimpleNamespace(outputs=outputs, more=[SimpleNamespace(spikes=spikes, mean=spikes.mean(0))], note="all")


class ClampedData(Net):
    """The membrane is given another value, and keeps its gradient."""

    def reset_by(self, v: Tensor, z: Tensor) -> Tensor:
        v = v - 0.5 * z
        v.data = v.data.clamp(-1, 1)
        return v


class SpikesByData(nn.Module):
    """A smooth function that is given the values of spikes: a surrogate gradient without a function of its own."""

    def __init__(self) -> None:
        super().__init__()
        self.inp, self.out = nn.Linear(INPUTS, HIDDEN), nn.Linear(HIDDEN, OUTPUTS)

    def forward(self, x: Tensor) -> Any:
        v, outputs = x.new_zeros(x.shape[1], HIDDEN), []
        for x_t in x:
            v = 0.8 * v + self.inp(x_t)
            z = torch.sigmoid(4 * (v - 0.5))
            z.data = (v > 0.5).to(v.dtype)
            v = v - 0.5 * z
            outputs.append(self.out(z))
        return torch.stack(outputs)


class PartOfData(Net):
    """What was taken of the membrane before it gets another value stays what it was."""

    def reset_by(self, v: Tensor, z: Tensor) -> Tensor:
        v = v - 0.5 * z
        part = v[:, :2]
        v.data = v.data * 0.5
        return v + 0.1 * part.sum(1, keepdim=True)


class Resetting(nn.Module):
    """A neuron that keeps its membrane, and starts afresh with one like the last."""

    def __init__(self) -> None:
        super().__init__()
        self.register_buffer("v", torch.zeros(0))

    def restart(self) -> None:
        self.v = torch.zeros_like(self.v)

    def forward(self, current: Tensor) -> Tensor:
        if self.v.shape != current.shape:
            self.v = torch.zeros_like(current)
        v = 0.8 * self.v + current
        z = spike(v - 0.5)
        self.v = v - 0.5 * z
        return z


class EverySecondOfAResetting(nn.Module):
    def __init__(self) -> None:
        super().__init__()
        self.inp, self.out = nn.Linear(INPUTS, HIDDEN), nn.Linear(HIDDEN, OUTPUTS)
        self.neuron = Resetting()

    def forward(self, x: Tensor) -> Any:
        self.neuron.restart()
        total = 0.0
        for t in range(0, x.shape[0], 2):
            total = total + 0.1 * self.out(self.neuron(self.inp(x[t]))).pow(2).mean()
        return total


class EverySecondMovesABuffer(nn.Module):
    """At three steps the loop is taken twice, at one or two steps once: no more is seen of it than a single call."""

    running: Tensor

    def __init__(self) -> None:
        super().__init__()
        self.inp, self.out = nn.Linear(INPUTS, HIDDEN), nn.Linear(HIDDEN, OUTPUTS)
        self.register_buffer("running", torch.zeros(HIDDEN))

    def forward(self, x: Tensor) -> Tensor:
        v, y = x.new_zeros(x.shape[1], HIDDEN), x.new_zeros(x.shape[1], OUTPUTS)
        for t in range(0, x.shape[0], 2):
            current = self.inp(x[t])
            self.running = 0.9 * self.running + 0.1 * current.mean(0).detach()
            v = 0.8 * v + current - self.running
            z = spike(v - 0.5)
            v = v - 0.5 * z
            y = self.out(z)
        return y


class WrittenPartOfData(Net):
    """What was taken of the membrane is written in place afterwards, and is no part of it any more."""

    def reset_by(self, v: Tensor, z: Tensor) -> Tensor:
        v = v - 0.5 * z
        part = v.detach()[:, :2]
        v.data = v.data * 0.5
        part.mul_(2.0)
        return v + 0.1 * part.sum(1, keepdim=True)


class ThresholdByData(nn.Module):
    """A buffer that is assigned by its data: thresholds that grow with the spikes, from sequence to sequence."""

    def __init__(self) -> None:
        super().__init__()
        self.inp, self.out = nn.Linear(INPUTS, HIDDEN), nn.Linear(HIDDEN, OUTPUTS)
        self.register_buffer("extra", torch.zeros(HIDDEN))

    def forward(self, x: Tensor) -> Any:
        v, outputs = x.new_zeros(x.shape[1], HIDDEN), []
        for x_t in x:
            v = 0.8 * v + self.inp(x_t)
            z = spike(v - 0.5 - self.extra)
            self.extra.data = 0.9 * self.extra.data + 0.1 * z.detach().mean(0)
            v = v - 0.5 * z
            outputs.append(self.out(z))
        return torch.stack(outputs)


class LearnedStartOfASynapse(nn.Module):
    """The membrane reaches the next step through a stack only, which is no elementwise operation."""

    def __init__(self) -> None:
        super().__init__()
        self.inp, self.out = nn.Linear(INPUTS, HIDDEN), nn.Linear(HIDDEN, OUTPUTS)
        self.first = nn.Parameter(torch.full((1, HIDDEN), 0.1))

    def forward(self, x: Tensor) -> Any:
        v, outputs = self.first.repeat(x.shape[1], 1), []  # learned
        for x_t in x:
            v = torch.stack([0.8 * v, self.inp(x_t)]).sum(0)
            z = spike(v - 0.5)
            v = v - 0.5 * z
            outputs.append(self.out(z))
        return torch.stack(outputs)


class Answer:
    """An object of the user's."""

    def __init__(self, outputs: Tensor) -> None:
        self.outputs = outputs


class ReturnsAnObject(Net):
    def returned(self, outputs: Tensor, spikes: Tensor) -> Any:
        return Answer(outputs)


class MaskOf32Bits(Net):
    """The mask is of 32 bits whatever the membrane is, as ``float()`` makes it."""

    def reset_by(self, v: Tensor, z: Tensor) -> Tensor:
        return v * (~(z > 0)).float()


class MaskOfBooleans(Net):
    def reset_by(self, v: Tensor, z: Tensor) -> Tensor:
        return v * (z == 0)


class MaskOf32BitsFirst(Net):
    def reset_by(self, v: Tensor, z: Tensor) -> Tensor:
        return torch.mul((z == 0).to(torch.float32), v)


class Twice(nn.Module):
    """One step per call; the spikes are returned as two things."""

    def __init__(self) -> None:
        super().__init__()
        self.inp = nn.Linear(INPUTS, HIDDEN)

    def forward(self, x_t: Tensor, v: Tensor | None = None) -> Any:
        v = x_t.new_zeros(x_t.shape[0], HIDDEN) if v is None else v
        v = 0.8 * v + self.inp(x_t)
        z = spike(v - 0.5)
        v = v - 0.5 * z
        return {"out": z, "spikes": z, "all": [z, z.sum(1)]}, v


@pytest.mark.parametrize("model", [ReturnsDataclass, ReturnsNestedDataclasses, ReturnsNamespace])
def test_objects_of_fields_are_returned_as_the_model_returns_them(model: Callable[[], nn.Module]) -> None:
    require_right(Program(model))


def test_tensors_inside_other_objects_are_refused() -> None:
    with pytest.raises(ConversionError, match=r"(?s)object of type Answer.*def forward"):
        tracecompile.convert(ReturnsAnObject(), torch.randn(6, 2, INPUTS))


@pytest.mark.parametrize("model", [ClampedData, SpikesByData, PartOfData, WrittenPartOfData, ThresholdByData])
def test_assigned_data_is_a_value_with_the_gradient_that_was_there(model: Callable[[], nn.Module]) -> None:
    require_right(Program(model))


def test_the_start_of_what_no_neuron_keeps_cannot_be_learned() -> None:
    require_refused(Program(LearnedStartOfASynapse), line="# learned")


def test_a_short_call_starts_afresh_as_a_long_one_does() -> None:
    require_right(Program(EverySecondOfAResetting, runs=((1, 3), (2, 1), (3, 2), (11, 5))))


def test_short_strided_calls_go_on_from_the_buffer_that_they_move() -> None:
    torch.manual_seed(0)
    model, twin = EverySecondMovesABuffer(), EverySecondMovesABuffer()
    twin.load_state_dict(model.state_dict())
    net = tracecompile.convert(model, torch.randn(6, 3, INPUTS))
    for steps in (4, 3, 2, 1, 7, 3):
        x = 2 * torch.randn(steps, 2, INPUTS)
        assert torch.equal(net(x), twin(x))
        assert torch.equal(model.running, twin.running)


@pytest.mark.parametrize("model", [MaskOf32Bits, MaskOfBooleans, MaskOf32BitsFirst])
def test_derivatives_have_the_precision_of_the_product(model: Callable[[], nn.Module]) -> None:
    require_right(Program(model))


def test_a_step_may_return_one_tensor_as_several_things() -> None:
    require_right(Program(Twice, step=True, returns_state=True))
