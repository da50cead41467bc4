"""Second derivatives, which a net does not have: said when somebody asks for one, for autograd would return zero."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any

import torch
from torch import Tensor

from tracecompile.errors import UnsupportedOperation


class FirstOrder(torch.autograd.Function):
    """Gradients that cannot be differentiated again."""

    @staticmethod
    def forward(ctx: Any, root: Tensor, *gradients: Tensor) -> Any:
        """Returns the gradients; through ``root`` autograd finds from them whatever they depend on."""
        return tuple(gradient.view_as(gradient) for gradient in gradients)

    @staticmethod
    def backward(ctx: Any, *signals: Tensor) -> Any:
        """Refuses.

        Raises:
            UnsupportedOperation: Always.
        """
        raise UnsupportedOperation(
            "The gradient of a converted module was differentiated again, and there is no second derivative: backward "
            "runs on what was recorded, not through the time steps.",
            "Leave create_graph=True out, or convert with rule='bptt', whose derivatives are those of the model.",
        )


def applied(function: type[torch.autograd.Function], kept: object, *args: Any) -> Any:
    """Applies a function whose first result is the only one that it saves, its root.

    Args:
        function: Is applied.
        kept: Lives as long as autograd keeps the graph: until a backward pass that does not retain it.
        *args: Of the function.
    """
    # Hooks of its own: those of the user's would put the root elsewhere, or make it again. Detached, since the result
    # itself leads back to what keeps it.
    with torch.autograd.graph.saved_tensors_hooks(lambda root: (root.detach(), kept), lambda packed: packed[0]):
        return function.apply(*args)


def first_order(root: Tensor, gradients: Sequence[Tensor | None]) -> list[Tensor | None]:
    """Returns gradients as they are, or under ``create_graph=True`` such that differentiating them is refused.

    Args:
        root: A result of the function whose backward has found them.
        gradients: None where there is none.
    """
    if not torch.is_grad_enabled():
        return list(gradients)
    made = iter(FirstOrder.apply(root, *(gradient for gradient in gradients if gradient is not None)))
    return [None if gradient is None else next(made) for gradient in gradients]
