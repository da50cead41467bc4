"""Compiled functions: what ``torch.jit`` and ``torch.compile`` made is traced through the Python that it came from."""

from __future__ import annotations

import warnings
from typing import Any

import pytest
import torch
from support.oracle import HIDDEN, Program, require_refused, require_right, spike
from torch import Tensor, nn

from forms.cells import Cell

with warnings.catch_warnings():
    warnings.simplefilter("ignore", DeprecationWarning)

    @torch.jit.script
    def decayed(v, current, beta: float):  # type: ignore[no-untyped-def]
        return beta * v + current

    @torch.jit.script
    def membrane(v, z, current, detach: bool):  # type: ignore[no-untyped-def]
        if detach:
            z = z.detach()
        return decayed(v, current, 0.9) - 0.8 * z

    @torch.jit.script
    def slope(v, steepness: float):  # type: ignore[no-untyped-def]
        return 1 / (1 + steepness * v.abs()) ** 2

    @torch.jit.script
    def step(v):  # type: ignore[no-untyped-def]
        return torch.gt(v, 0.0).to(v.dtype)

    traced = torch.jit.trace(lambda v, current: 0.9 * v + current, (torch.ones(2, HIDDEN), torch.ones(2, HIDDEN)))


class ScriptedSpike(torch.autograd.Function):
    @staticmethod
    def forward(ctx: Any, v: Tensor) -> Tensor:
        ctx.save_for_backward(v)
        return step(v)

    @staticmethod
    def backward(ctx: Any, grad: Tensor) -> Tensor:
        return grad * slope(ctx.saved_tensors[0], 5.0)


class ScriptedUpdate(Cell):
    def step(self, current: Tensor, v: Tensor) -> tuple[Tensor, Tensor]:
        v = decayed(v, current, 0.9)
        z = spike(v - 0.8)
        return z, v - 0.8 * z


class BranchInScript(Cell):
    """A script that calls another one and asks one of its arguments."""

    def step(self, current: Tensor, v: Tensor) -> tuple[Tensor, Tensor]:
        z = spike(v - 0.8)
        return z, membrane(v, z, current, True)


class TracedUpdate(Cell):
    def step(self, current: Tensor, v: Tensor) -> tuple[Tensor, Tensor]:
        v = traced(v, current)
        z = spike(v - 0.8)
        return z, v - 0.8 * z


class ScriptedSurrogate(Cell):
    def step(self, current: Tensor, v: Tensor) -> tuple[Tensor, Tensor]:
        v = 0.9 * v + current
        z = ScriptedSpike.apply(v - 0.8)
        return z, v - 0.8 * z


class Update(nn.Module):
    def forward(self, v: Tensor, current: Tensor) -> Tensor:
        return 0.9 * v + torch.tanh(current) + current


class ScriptedModule(Cell):
    """Its Python is gone; without a Parameter in it, what it returns could be taken for a constant."""

    def __init__(self) -> None:
        super().__init__()
        with warnings.catch_warnings():
            warnings.simplefilter("ignore", DeprecationWarning)
            self.update = torch.jit.script(Update())

    def step(self, current: Tensor, v: Tensor) -> tuple[Tensor, Tensor]:
        v = self.update(v, current)
        z = spike(v - 0.8)
        return z, v - 0.8 * z


class CompiledModule(Cell):
    def __init__(self) -> None:
        super().__init__()
        self.update = torch.compile(Update(), backend="eager")

    def step(self, current: Tensor, v: Tensor) -> tuple[Tensor, Tensor]:
        v = self.update(v, current)
        z = spike(v - 0.8)
        return z, v - 0.8 * z


@pytest.mark.parametrize(
    "model",
    [ScriptedUpdate, BranchInScript, TracedUpdate, ScriptedSurrogate, CompiledModule],
    ids=lambda model: model.__name__,
)
def test_is_converted(model: type[nn.Module]) -> None:
    require_right(Program(model))


def test_a_scripted_module_is_refused_at_its_line() -> None:
    require_refused(Program(ScriptedModule), line="self.update(v, current)")
