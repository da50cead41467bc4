"""What a step in trace form calls beside torch: sums in a precision that does not lose them.

Traces, tangents and responses are kept in float32 at least, whatever the precision of the model: a sum over thousands
of steps in 16 bits stops growing.
"""

from __future__ import annotations

import torch
from torch import Tensor

_FULL = (torch.float32, torch.float64)
"""Precisions in which values are accumulated as they are."""


def accumulator_dtype(dtype: torch.dtype) -> torch.dtype:
    """Returns the precision in which sums of a value are kept: never below float32."""
    return torch.promote_types(dtype, torch.float32)


def accumulated(total: Tensor, value: Tensor) -> Tensor:
    """Returns a sum with one more value; a total of no dimensions is one of nothing yet."""
    return total + (value if value.dtype in _FULL else value.to(accumulator_dtype(value.dtype)))


def product_accumulated(total: Tensor, slope: Tensor, change: Tensor, value: Tensor) -> Tensor:
    """Returns a sum with one more derivative of every element of a value, which is a slope times a change."""
    dtype = value.dtype
    as_they_are = dtype in _FULL and total.dtype == dtype and slope.dtype == dtype and change.dtype == dtype
    if as_they_are and total.shape == value.shape and change.shape == value.shape:
        return torch.addcmul(total, slope, change)
    return accumulated(total, spread(slope * change, value))


def decayed(total: Tensor, value: Tensor, decay: float) -> Tensor:
    """Returns a decaying sum with one more value."""
    return accumulated(total * decay, value)


def all_accumulated(total: Tensor, values: Tensor, decay: float | None) -> Tensor:
    """Returns a sum, decaying or not, with the values of several steps, (steps, *shape): as one after the other."""
    dtype = accumulator_dtype(values.dtype)
    if decay is None:
        return total + values.sum(0, dtype=dtype)
    steps = values.shape[0]
    weights = [decay ** (steps - 1 - step) for step in range(steps)]
    factors = torch.tensor(weights, dtype=dtype, device=values.device)
    weighted: Tensor = torch.tensordot(factors, values.to(dtype), 1)
    return total * decay**steps + weighted


def precise(slope: Tensor | float, value: Tensor) -> Tensor:
    """Returns a derivative of a value in the precision of what accumulates it; of a size it may be a number."""
    if not isinstance(slope, Tensor):
        return torch.full((), slope, dtype=accumulator_dtype(value.dtype), device=value.device)
    if slope.dtype == value.dtype and slope.dtype in _FULL:
        return slope
    return slope.to(torch.promote_types(slope.dtype, accumulator_dtype(value.dtype)))


def spread(derivative: Tensor | float, value: Tensor) -> Tensor:
    """Returns a derivative of every element of a value: one that all elements share is repeated."""
    if not isinstance(derivative, Tensor):
        return torch.full_like(value, derivative, dtype=accumulator_dtype(value.dtype))
    if derivative.dtype == value.dtype and value.dtype in _FULL and derivative.shape == value.shape:
        return derivative
    return derivative.to(accumulator_dtype(value.dtype)).expand_as(value)
