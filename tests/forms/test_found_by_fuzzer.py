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
        return SimpleNamespace(outputs=outputs, spikes=spikes)


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


@pytest.mark.parametrize("model", [ReturnsDataclass, ReturnsNestedDataclasses])
def test_dataclasses_are_returned_as_the_model_returns_them(model: Callable[[], nn.Module]) -> None:
    require_right(Program(model))


def test_tensors_inside_other_objects_are_refused() -> None:
    require_refused(Program(ReturnsNamespace), line="def forward(self, x: Tensor)")


@pytest.mark.parametrize("model", [MaskOf32Bits, MaskOfBooleans, MaskOf32BitsFirst])
def test_derivatives_have_the_precision_of_the_product(model: Callable[[], nn.Module]) -> None:
    require_right(Program(model))


def test_a_step_may_return_one_tensor_as_several_things() -> None:
    require_right(Program(Twice, step=True, returns_state=True))
