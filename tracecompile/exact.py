"""A value computed in one way with the gradient of another."""

from __future__ import annotations

from torch import Tensor


def exact_value(computed: Tensor, value: Tensor) -> Tensor:
    """Returns ``value``, bit for bit, with the gradient of ``computed``.

    A product over a whole sequence and the same product step by step may differ in the last bit: the first is the value
    that the model has, the second is what can be trained in memory that does not grow with time.

    Args:
        computed: The same up to rounding, of the same shape.
        value: What to return; no gradient flows into it.
    """
    if not computed.requires_grad:
        return value.detach()
    return value.detach() + (computed - computed.detach())
