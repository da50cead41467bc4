"""Puts products with spikes in the places of torch's, however the model writes them, and of their gradients."""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence
from typing import Any

import torch
from torch import Tensor
from torch.autograd.function import once_differentiable
from torch.nn import functional
from torch.overrides import TorchFunctionMode

from tracecompile.runtime.engine.sums.products import PLAIN, Products


class Instead(TorchFunctionMode):
    """While it is entered, what the model calls with a matrix and a weight is computed by products with spikes."""

    def __init__(self, products: Products) -> None:
        """Takes the products; weights among them are known to stand still."""
        super().__init__()
        self.products = products

    def __torch_function__(
        self, function: Any, types: Any, given: Sequence[Any] = (), named: Mapping[str, Any] | None = None
    ) -> Any:
        """Computes a product of two matrices, and calls anything else as it is."""
        named = named or {}
        written = FORMS.get(function)
        if written is not None and set(named) <= {"bias"} and (parts := written(*given, **named)) is not None:
            left, right, first = parts
            if self._fits(left, right, first):
                return _product(self.products, left, right, first)
        return function(*given, **named)

    def _fits(self, left: Any, right: Any, first: Any) -> bool:
        matrices = all(type(value) in PLAIN and value.ndim == 2 for value in (left, right))
        return (
            matrices
            and left.shape[1] == right.shape[0]
            and (first is None or (type(first) in PLAIN and first.shape == right.shape[1:]))
            and left.dtype == right.dtype == torch.float32
            and left.is_cpu
            and not torch.is_autocast_enabled("cpu")
            and self.products.stands(right)
        )


class _Product(torch.autograd.Function):
    """first + left @ right, the gradients of which are products with spikes as well."""

    @staticmethod
    def forward(ctx: Any, products: Products, left: Tensor, right: Tensor, first: Tensor | None) -> Tensor:
        """Returns the product."""
        ctx.products = products
        ctx.save_for_backward(left, right)
        return products.mm(left, right) if first is None else products.addmm(first, left, right)

    @staticmethod
    @once_differentiable
    def backward(ctx: Any, signal: Tensor) -> Any:
        """Returns the gradients, as torch computes them."""
        (left, right), wanted = ctx.saved_tensors, ctx.needs_input_grad
        products: Products = ctx.products
        below = products.mm(signal, right.t()) if wanted[1] else None
        weights = products.mm(signal.t(), left).t() if wanted[2] else None
        return None, below, weights, signal.sum(0) if wanted[3] else None


def _product(products: Products, left: Tensor, right: Tensor, first: Tensor | None) -> Tensor:
    learned = torch.is_grad_enabled() and any(
        value is not None and value.requires_grad for value in (left, right, first)
    )
    if learned:
        found: Tensor = _Product.apply(products, left, right, first)
        return found
    return products.mm(left, right) if first is None else products.addmm(first, left, right)


Parts = tuple[Any, Any, Any]


def _linear(x: Any, weight: Any, bias: Any = None) -> Parts | None:
    return (x, weight.t(), bias) if type(weight) in PLAIN and weight.ndim == 2 else None


def _matmul(left: Any, right: Any) -> Parts:
    return left, right, None


def _addmm(first: Any, left: Any, right: Any) -> Parts:
    return left, right, first


FORMS: dict[Any, Callable[..., Parts | None]] = {
    functional.linear: _linear,
    torch.addmm: _addmm,
    **dict.fromkeys((torch.mm, torch.matmul, Tensor.mm, Tensor.matmul, Tensor.__matmul__), _matmul),
}
"""What a model may write, by what of it are the matrices and what sums begin with."""
