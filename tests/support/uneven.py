"""A processor that rounds a product of many rows otherwise than one of few, wherever the tests run."""

from __future__ import annotations

from typing import Any

import torch
from torch import Tensor
from torch.utils._python_dispatch import TorchDispatchMode

aten = torch.ops.aten


class Uneven(TorchDispatchMode):
    """Adds up products of many rows from the other end while it is entered.

    Args:
        many: From how many rows on.
    """

    def __init__(self, many: int = 6) -> None:
        super().__init__()
        self.many = many
        self.turned = 0

    def __torch_dispatch__(self, func: Any, types: Any, args: Any = (), kwargs: Any = None) -> Any:
        """Runs an operation."""
        turned = self.arguments(func, args) if func in TURNED else None
        self.turned += turned is not None
        return func(*(turned or args), **(kwargs or {}))

    def arguments(self, func: Any, args: Any) -> Any:
        """Returns the same factors with what is added up in the opposite order; None for few rows."""
        left, axis_left, axis_right = TURNED[func]
        one, other = args[left : left + 2]
        if not one.is_floating_point() or rows(one, func) < self.many or one.shape[axis_left] < 2:
            return None
        turned = (one.flip(axis_left), other.flip(axis_right))
        return (*args[:left], *turned, *args[left + 2 :])


def rows(factor: Tensor, func: Any) -> int:
    """Returns how many rows a product has."""
    return factor.shape[0] if func is not aten.bmm.default else factor.shape[0] * factor.shape[1]


TURNED = {
    aten.mm.default: (0, 1, 0),
    aten.addmm.default: (1, 1, 0),
    aten.bmm.default: (0, 2, 1),
    aten.convolution.default: (0, 1, 1),
}
"""Position of the first of two factors, and the axis of each that is added up, by operator."""
