"""Tensors filled with random numbers, as programs draw them."""

from __future__ import annotations

from typing import Any

import torch
from torch import Tensor

from tracecompile.operations import Fact, described

FILLS = frozenset("bernoulli_ cauchy_ exponential_ geometric_ log_normal_ normal_ random_ uniform_".split())
"""Methods that fill a tensor with random numbers, whatever it holds."""


@described(Fact.RANDOM | Fact.LIKE)
def drawn(like: Tensor, method: str, *args: Any, **kwargs: Any) -> Tensor:
    """Returns a tensor of the shape, type, device and layout of another, filled by one of the methods of ``FILLS``."""
    if method not in FILLS:
        raise ValueError(f"{method} does not fill a tensor with random numbers.")
    filled: Tensor = getattr(torch.empty_like(like), method)(*args, **kwargs)
    return filled
