"""A processor that rounds a product of many rows otherwise than one of few, wherever the tests run."""

from __future__ import annotations

from collections.abc import Callable, Iterable
from typing import Any

import torch
from torch import Tensor
from torch.utils._python_dispatch import TorchDispatchMode

aten = torch.ops.aten


class Uneven(TorchDispatchMode):
    """Adds up products of few rows from the beginning, and those of many from the end, while it is entered.

    Args:
        many: From how many rows on.
    """

    def __init__(self, many: int = 6) -> None:
        super().__init__()
        self.many = many
        self.turned = 0

    def __torch_dispatch__(self, func: Any, types: Any, args: Any = (), kwargs: Any = None) -> Any:
        """Runs an operation."""
        product = PRODUCTS.get(func)
        if product is None or not args[0].is_floating_point():
            return func(*args, **(kwargs or {}))
        return product(self, *args, **(kwargs or {}))

    def order(self, terms: int, rows: int) -> Iterable[int]:
        """Returns the order in which the terms of a product of so many rows are added up."""
        self.turned += rows >= self.many
        return range(terms) if rows < self.many else range(terms - 1, -1, -1)


def product(mode: Uneven, left: Tensor, right: Tensor) -> Tensor:
    """Multiplies matrices, or batches of them."""
    total = left.new_zeros((*left.shape[:-1], right.shape[-1]))
    for k in mode.order(left.shape[-1], left.shape[:-1].numel()):
        total = total + left[..., k, None] * right[..., k, None, :]
    return total


def onto(mode: Uneven, start: Tensor, left: Tensor, right: Tensor, *, beta: float = 1, alpha: float = 1) -> Tensor:
    """Multiplies matrices and adds something."""
    return alpha * product(mode, left, right) + beta * start


def convolution(mode: Uneven, x: Tensor, weight: Tensor, bias: Tensor | None, *others: Any) -> Tensor:
    """Adds up one channel after the other; groups are left alone."""
    if others[-1] != 1:
        kept: Tensor = aten.convolution.default(x, weight, bias, *others)
        return kept
    axis, total = 0 if others[3] else 1, 0
    for channel in mode.order(x.shape[1], len(x)):
        part = x.narrow(1, channel, 1), weight.narrow(axis, channel, 1)
        total = total + aten.convolution.default(*part, None, *others)
    assert isinstance(total, Tensor)
    return total if bias is None else total + bias.reshape(-1, *(1 for _ in weight.shape[2:]))


PRODUCTS: dict[Any, Callable[..., Tensor]] = {
    aten.mm.default: product,
    aten.bmm.default: product,
    aten.addmm.default: onto,
    aten.convolution.default: convolution,
}
"""What is added up in two orders, by operator."""
