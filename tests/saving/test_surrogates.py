"""Surrogate functions are written out as formulas that are theirs bit for bit, or refused by name."""

from __future__ import annotations

from typing import Any

import pytest
import torch
from torch import Tensor
from torch.autograd import Function

from tracecompile.capture.tracing.surrogates import SLOT, SurrogateLeaf
from tracecompile.errors import InvalidInput
from tracecompile.rules.formulas import Surrogate
from tracecompile.saving.surrogates import written_out


class Plain(Function):
    @staticmethod
    def forward(ctx: Any, v: Tensor) -> Tensor:
        ctx.save_for_backward(v)
        return (v > 0).to(v.dtype)

    @staticmethod
    def backward(ctx: Any, gradient: Tensor) -> Tensor:
        (v,) = ctx.saved_tensors
        return gradient / (1 + 5 * v.abs()) ** 2


class WithConstants(Function):
    """Keeps a number in its context and a condition besides."""

    @staticmethod
    def forward(ctx: Any, v: Tensor, width: float, scale: float) -> Tensor:
        ctx.width, ctx.scale = width, scale
        ctx.save_for_backward(v, v > 0)
        return torch.where(v > 0, torch.ones_like(v), torch.zeros_like(v))

    @staticmethod
    def backward(ctx: Any, gradient: Tensor) -> tuple[Tensor | None, ...]:
        v, _ = ctx.saved_tensors
        return torch.where(v.abs() < ctx.width, gradient * ctx.scale, torch.zeros_like(gradient)), None, None


class OfTwo(Function):
    """A threshold that learns; its context is set up apart."""

    @staticmethod
    def forward(v: Tensor, threshold: Tensor) -> Tensor:
        return (v > threshold).to(v.dtype)

    @staticmethod
    def setup_context(ctx: Any, inputs: tuple[Any, ...], output: Tensor) -> None:
        ctx.save_for_backward(*inputs)

    @staticmethod
    def backward(ctx: Any, gradient: Tensor) -> tuple[Tensor, Tensor]:
        v, threshold = ctx.saved_tensors
        slope = gradient * torch.exp(-((v - threshold) ** 2))
        return slope, -slope


class InPlace(Function):
    """Writes into what it makes, which only elementary operations can follow."""

    @staticmethod
    def forward(ctx: Any, v: Tensor) -> Tensor:
        ctx.save_for_backward(v)
        out = torch.zeros_like(v)
        out[v > 0] = 1.0
        return out

    @staticmethod
    def backward(ctx: Any, gradient: Tensor) -> Tensor:
        (v,) = ctx.saved_tensors
        return gradient * (1 - v.abs()).clamp_min(0)


class LooksAtValues(Plain):
    @staticmethod
    def backward(ctx: Any, gradient: Tensor) -> Tensor:
        (v,) = ctx.saved_tensors
        return gradient if v.sum() > 0 else 2 * gradient


class Draws(Plain):
    @staticmethod
    def backward(ctx: Any, gradient: Tensor) -> Tensor:
        return gradient * torch.rand_like(gradient)


class OfItsSize(Plain):
    @staticmethod
    def backward(ctx: Any, gradient: Tensor) -> Tensor:
        return gradient / gradient.numel()


TENSOR = (SLOT, 0)
FAITHFUL = {
    "plain": SurrogateLeaf(Plain, (TENSOR,)),
    "constants": SurrogateLeaf(WithConstants, (TENSOR, ("constant", 0.5), ("constant", 0.3))),
    "two tensors": SurrogateLeaf(OfTwo, (TENSOR, (SLOT, 1))),
    "its size": SurrogateLeaf(OfItsSize, (TENSOR,)),
}


def both(leaf: SurrogateLeaf, given: list[Tensor]) -> list[Tensor]:
    leaves = [value.clone().requires_grad_() for value in given]
    value = leaf(*leaves)
    return [value, *torch.autograd.grad(value, leaves, torch.linspace(-1, 1, value.numel()).reshape(value.shape))]


@pytest.mark.parametrize("leaf", FAITHFUL.values(), ids=FAITHFUL.keys())
def test_formulas_are_the_function(leaf: SurrogateLeaf) -> None:
    count = sum(kind == SLOT for kind, _ in leaf.template)
    surrogate = Surrogate("Written", count, *written_out(leaf))
    generator = torch.Generator().manual_seed(5)
    given = [torch.randn(6, 3, 2, generator=generator) for _ in range(count)]
    for one, other in zip(both(leaf, given), both(surrogate, given), strict=True):
        assert torch.equal(one, other)
        assert one.any()


@pytest.mark.parametrize("function", [LooksAtValues, Draws], ids=lambda each: each.__name__)
def test_what_is_no_formula_is_refused_by_name(function: type[Function]) -> None:
    with pytest.raises(InvalidInput, match=f"{function.__name__} of .*test_surrogates"):
        written_out(SurrogateLeaf(function, (TENSOR,)))


def test_a_surrogate_that_was_read_is_written_as_it_is() -> None:
    value, gradient = written_out(FAITHFUL["plain"])
    assert written_out(Surrogate("Plain", 1, value, gradient)) == (value, gradient)
