"""Operations as people write them: constants of numpy, writes in place and by masks, what no table knows."""

from __future__ import annotations

import numpy as np
import pytest
import torch
import torch.nn.functional as F
from support.oracle import HIDDEN, Program, require_right, spike
from torch import Tensor, nn

import tracecompile
from forms.cells import Cell, Recurrent

State = tuple[Tensor, Tensor]


# Constants of numpy.


class NumpyNumber(Cell):
    decay = np.exp(-1 / 8)

    def step(self, current: Tensor, v: Tensor) -> State:
        v = self.decay * v + current
        z = spike(v - np.float32(0.8))
        return z, v - np.float64(0.8) * z


class EntriesOfArray(Cell):
    decays = np.array([0.9, 0.8], dtype=np.float32)

    def step(self, current: Tensor, v: Tensor) -> State:
        v = torch.clamp(v * self.decays[0] + current, min=-self.decays[1], max=np.float64(5))
        z = spike(v - self.decays[1])
        return z, v * (np.int64(1) - z)


class ArrayMadeTensorEachStep(Cell):
    tau = np.linspace(3.0, 20.0, HIDDEN)

    def step(self, current: Tensor, v: Tensor) -> State:
        v = torch.as_tensor(np.exp(-1 / self.tau), dtype=v.dtype) * v + current
        z = spike(v - 0.8)
        return z, v - 0.8 * z


class ArrayFromNumpy(Cell):
    decay = np.linspace(0.5, 0.9, HIDDEN)

    def step(self, current: Tensor, v: Tensor) -> State:
        v = torch.from_numpy(self.decay).to(v) * v + current
        z = spike(v - 0.8)
        return z, v - 0.8 * z


class ListOfNumpyNumbers(Cell):
    def step(self, current: Tensor, v: Tensor) -> State:
        v = torch.tensor([np.float64(0.9)] * HIDDEN, dtype=v.dtype) * v + current
        z = spike(v - 0.8)
        return z, v - 0.8 * z


class ArrayAsIndexAndMask(Cell):
    order, slow = np.arange(HIDDEN)[::-1].copy(), np.arange(HIDDEN) % 2 == 0

    def step(self, current: Tensor, v: Tensor) -> State:
        v = torch.where(torch.as_tensor(self.slow), 0.9 * v, 0.5 * v) + current[:, self.order]
        z = spike(v - 0.8)
        return z, v - 0.8 * z


# In place, and by masks.


class DiagonalOfCopyPerStep(Recurrent):
    def step(self, current: Tensor, v: Tensor) -> State:
        lateral = self.lateral.clone()
        lateral.fill_diagonal_(0)
        z = spike(v - 0.8)
        return z, 0.9 * v + current - 0.8 * z + 0.5 * z @ lateral


class ColumnsFilled(Cell):
    def step(self, current: Tensor, v: Tensor) -> State:
        v = 0.9 * v + current
        z = spike(v - 0.8)
        v = v - 0.8 * z
        v.index_fill_(1, torch.tensor([0, 3]), 0.0)
        v.scatter_(1, torch.ones(v.shape[0], 1, dtype=torch.long), 0.1)
        v[:, 2] = 0.0
        return z, v


class FreshResetByMask(Cell):
    def step(self, current: Tensor, v: Tensor) -> State:
        v = 0.9 * v + current
        z, drop = spike(v - 0.8), torch.zeros_like(v)
        drop[v > 0.8] = 0.8
        return z, v - drop


class SubtractedThroughMask(Cell):
    def step(self, current: Tensor, v: Tensor) -> State:
        v = 0.9 * v + current
        z, v = spike(v - 0.8), v.clone()
        v[z > 0] -= 0.8
        return z, v


class CopiedThroughMask(Cell):
    def step(self, current: Tensor, v: Tensor) -> State:
        v = 0.9 * v + current
        z, u = spike(v - 0.8), v.clone()
        u[z > 0] = 0.5 * v[z > 0] + 0.1
        return z, u


class PutByMask(Cell):
    def step(self, current: Tensor, v: Tensor) -> State:
        v = 0.9 * v + current
        z, v = spike(v - 0.8), v.clone()
        v.index_put_((z.bool(),), torch.tensor(0.1).to(v))
        return z, v


class OneNeuronBelowThreshold(Cell):
    """What a mask selects may be a single element in the example, and is no number for all that."""

    def step(self, current: Tensor, v: Tensor) -> State:
        v = 0.9 * v + current
        z, u = spike(v - 0.8), v.clone()
        u[v > v.max() - 1e-6] = torch.exp(-v[v > v.max() - 1e-6])
        return z, u - 0.8 * z


# Everything else.


class Products(Recurrent):
    def step(self, current: Tensor, v: Tensor) -> State:
        z = spike(v - 0.8)
        v = torch.addmm(0.9 * v - 0.8 * z + current, z, self.lateral, alpha=0.5)
        v = v + 0.1 * torch.einsum("bi,ij->bj", z, self.lateral)
        weights = self.lateral.expand(z.shape[0], HIDDEN, HIDDEN)
        return z, torch.baddbmm(v.unsqueeze(1), z.unsqueeze(1), weights, alpha=0.1).squeeze(1)


class SizesInTheStep(Cell):
    def step(self, current: Tensor, v: Tensor) -> State:
        v = v * (1 - 1 / v.shape[1]) + current
        z = spike(v - 0.8)
        v = torch.where(z > 0, torch.zeros(v.shape[0], v.shape[1], dtype=v.dtype), v)
        return z, v * (torch.ones(*v.size(), dtype=v.dtype) - torch.zeros(1).to(v).expand_as(v))


class Keywords(Cell):
    def step(self, current: Tensor, v: Tensor) -> State:
        v = torch.lerp(2 * current, v, weight=torch.sigmoid(v))
        z = spike(v - 0.8)
        return z, torch.where(condition=z > 0, input=0.1 * v, other=torch.clip(v, min=-2.0))


class OldNames(Cell):
    def step(self, current: Tensor, v: Tensor) -> State:
        v = torch.hypot(current, 0.5 * v + 0.1) + F.softshrink(0.9 * v + current, 0.1)
        z, calm = spike(v - 1.5), torch.isfinite(v).bitwise_and(v < 1.5)
        return z, v * calm.float()


WORKING: list[type[nn.Module]] = [
    NumpyNumber, EntriesOfArray, ArrayMadeTensorEachStep, ArrayFromNumpy, ListOfNumpyNumbers, ArrayAsIndexAndMask,
    DiagonalOfCopyPerStep, ColumnsFilled, FreshResetByMask, SubtractedThroughMask, CopiedThroughMask, PutByMask,
    OneNeuronBelowThreshold, Products, SizesInTheStep, Keywords, OldNames,
]  # fmt: skip


@pytest.mark.parametrize("model", WORKING, ids=lambda model: model.__name__)
def test_is_converted(model: type[nn.Module]) -> None:
    require_right(Program(model))


def test_generated_code_knows_no_numpy() -> None:
    net = tracecompile.convert(EntriesOfArray(), (torch.randn(6, 2, 6),))
    lines = [line for _, text in net.stages for line in text.splitlines() if not line.strip().startswith("#")]
    assert lines
    assert not any("np." in line or "numpy" in line for line in lines)


def test_a_masked_write_stays_within_the_neuron() -> None:
    net = tracecompile.convert(FreshResetByMask(), (torch.randn(6, 2, 6),))
    (layer,) = [layer for layer in net.program.layers if layer.spikes]
    assert layer.states
    assert layer.core is not None
