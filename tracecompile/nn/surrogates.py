"""Spike functions: a step forward, the slope of a smooth curve backward.

Forward, every one of them is the same step of the distance ``x = membrane - threshold``::

    s = 1 if x > 0 else 0          (strictly: a membrane exactly at threshold does not spike)

Backward, the derivative of the step, which is zero almost everywhere, is replaced by ``h(x)``, a bump around threshold
that is given with each function. The derivative of ``h`` is the ordinary one, so second derivatives exist.

A factory such as ``arctan(alpha=2.0)`` returns a ``Surrogate``: a plain callable that compares, copies and pickles by
value.
"""

from __future__ import annotations

import math
from collections.abc import Callable
from dataclasses import dataclass
from typing import Any, cast

import torch
from torch import Tensor
from torch.autograd import Function

SpikeFunction = Callable[[Tensor], Tensor]
"""Distance to threshold (any shape, units of the membrane) -> spikes, 0 or 1, of the same shape and dtype."""


class _Step(Function):
    """The forward step that all surrogates share; a subclass gives ``slope_at``."""

    generate_vmap_rule = True

    @staticmethod
    def forward(x: Tensor, *parameters: float) -> Tensor:
        return (x > 0).to(x.dtype)

    @staticmethod
    def setup_context(ctx: Any, inputs: tuple[Any, ...], output: Tensor) -> None:
        x, *parameters = inputs
        ctx.save_for_backward(x)
        ctx.parameters = parameters


class FastSigmoid(_Step):
    """``h(x) = 1 / (1 + slope |x|)^2``; see ``fast_sigmoid``."""

    @staticmethod
    def backward(ctx: Any, gradient: Tensor) -> tuple[Tensor, None]:
        """Returns ``gradient * h(x)``, of the shape of x."""
        (x,) = ctx.saved_tensors
        (slope,) = ctx.parameters
        return gradient / x.abs().mul_(slope).add_(1).square_(), None


class Arctan(_Step):
    """``h(x) = alpha / 2 / (1 + (pi / 2 alpha x)^2)``; see ``arctan``."""

    @staticmethod
    def backward(ctx: Any, gradient: Tensor) -> tuple[Tensor, None]:
        """Returns ``gradient * h(x)``, of the shape of x."""
        (x,) = ctx.saved_tensors
        (alpha,) = ctx.parameters
        return gradient * (alpha / 2) / (1 + (math.pi / 2 * alpha * x) ** 2), None


class Sigmoid(_Step):
    """``h(x) = slope y (1 - y)`` with ``y = 1 / (1 + exp(-slope x))``; see ``sigmoid``."""

    @staticmethod
    def backward(ctx: Any, gradient: Tensor) -> tuple[Tensor, None]:
        """Returns ``gradient * h(x)``, of the shape of x."""
        (x,) = ctx.saved_tensors
        (slope,) = ctx.parameters
        # sigmoid(-z) rather than 1 - sigmoid(z), which loses every digit where z is large
        return gradient * slope * torch.sigmoid(slope * x) * torch.sigmoid(-slope * x), None


class Triangular(_Step):
    """``h(x) = height max(0, 1 - |x| / width)``; see ``triangular``."""

    @staticmethod
    def backward(ctx: Any, gradient: Tensor) -> tuple[Tensor, None, None]:
        """Returns ``gradient * h(x)``, of the shape of x."""
        (x,) = ctx.saved_tensors
        width, height = ctx.parameters
        return gradient * height * torch.relu(1 - x.abs() / width), None, None


class StraightThrough(_Step):
    """``h(x) = 1``; see ``straight_through``."""

    @staticmethod
    def backward(ctx: Any, gradient: Tensor) -> tuple[Tensor]:
        """Returns the gradient as it is."""
        return (gradient,)


@dataclass(frozen=True)
class Surrogate:
    """A spike function with its constants.

    Attributes:
        function: The autograd Function.
        parameters: (name, value) of its constants, in the order of the Function's arguments.
    """

    function: type[Function]
    parameters: tuple[tuple[str, float], ...] = ()

    def __post_init__(self) -> None:
        for name, value in self.parameters:
            if not (math.isfinite(value) and value > 0):
                raise ValueError(f"{name} of a surrogate must be a finite positive number, not {value!r}")

    def __call__(self, x: Tensor) -> Tensor:
        """Returns the spikes for the distance to threshold ``x`` (any shape), in the dtype of ``x``."""
        constants = (value for _, value in self.parameters)
        return cast(Tensor, self.function.apply(x, *constants))

    def __repr__(self) -> str:
        constants = ", ".join(f"{name}={value:g}" for name, value in self.parameters)
        return f"{self.function.__name__}({constants})"


def fast_sigmoid(slope: float = 25.0) -> Surrogate:
    """Returns the spike function with ``h(x) = 1 / (1 + slope |x|)^2``, the derivative of ``x / (1 + slope |x|)``.

    Source: Zenke and Ganguli 2018, SuperSpike (Neural Computation 30:6). Peak 1; half of it at ``|x| = 0.41 / slope``.

    Args:
        slope: Steepness, per unit of the membrane.

    Raises:
        ValueError: ``slope`` is not a finite positive number.
    """
    return Surrogate(FastSigmoid, (("slope", slope),))


def arctan(alpha: float = 2.0) -> Surrogate:
    """Returns the spike function with ``h(x) = alpha / 2 / (1 + (pi / 2 alpha x)^2)``.

    It is the derivative of ``arctan(pi / 2 alpha x) / pi + 1/2``.
    Source: Fang et al. 2021 (ICCV). Peak ``alpha / 2``; half of it at ``|x| = 0.64 / alpha``.

    Args:
        alpha: Steepness, per unit of the membrane.

    Raises:
        ValueError: ``alpha`` is not a finite positive number.
    """
    return Surrogate(Arctan, (("alpha", alpha),))


def sigmoid(slope: float = 4.0) -> Surrogate:
    """Returns the spike function with the derivative of ``1 / (1 + exp(-slope x))``.

    Source: Neftci, Mostafa and Zenke 2019 (IEEE Signal Processing Magazine 36:6). Peak ``slope / 4``; half of it at
    ``|x| = 1.76 / slope``.

    Args:
        slope: Steepness, per unit of the membrane.

    Raises:
        ValueError: ``slope`` is not a finite positive number.
    """
    return Surrogate(Sigmoid, (("slope", slope),))


def triangular(width: float = 1.0, height: float = 1.0) -> Surrogate:
    """Returns the spike function with ``h(x) = height max(0, 1 - |x| / width)``: no gradient beyond ``width``.

    Source: Bellec et al. 2018 (NeurIPS), who take ``width`` = threshold and ``height`` = 0.3.

    Args:
        width: Distance from threshold at which the gradient ends, in units of the membrane.
        height: Peak.

    Raises:
        ValueError: An argument is not a finite positive number.
    """
    return Surrogate(Triangular, (("width", width), ("height", height)))


def straight_through() -> Surrogate:
    """Returns the spike function with ``h(x) = 1``, the straight-through estimator.

    Source: Bengio, Léonard and Courville 2013 (arXiv 1308.3432).
    """
    return Surrogate(StraightThrough)
