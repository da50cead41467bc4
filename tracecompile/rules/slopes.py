"""Derivatives of single operations that have no entry in the table of ``jacobian``: taken from the operation itself."""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

import torch

from tracecompile.rules.written import Slopes


class WithSlopes(Slopes):
    """Calls an elementwise operation and returns its value with its derivative for chosen arguments.

    The derivatives are one vector-Jacobian product of ones, so they are those of the user's own ``backward``: a
    surrogate's derivative is whatever the user wrote. Arguments that broadcast are expanded first, so that every
    element of the value has a derivative of its own.
    """

    def __init__(self, operation: Callable[..., Any], kind: str, wanted: tuple[int | str, ...]) -> None:
        """Keeps the operation.

        Args:
            operation: A module, a function, or for ``kind`` "call_method" the method's name.
            kind: The fx opcode.
            wanted: Positions, or keywords, of the arguments to differentiate by.
        """
        super().__init__()
        self.operation = operation
        self.kind = kind
        self.wanted = wanted

    def by_autograd(self, *args: Any, **kwargs: Any) -> tuple[torch.Tensor, ...]:
        """Returns (value, derivative by the first wanted argument, ...), each of the value's shape, without a graph."""
        every: dict[int | str, Any] = dict(enumerate(args))
        every.update(kwargs)
        shape = _common_shape([a.shape for a in every.values() if isinstance(a, torch.Tensor)])
        with torch.enable_grad():
            leaves = {key: every[key].detach().expand(shape).requires_grad_() for key in self.wanted}
            given = [leaves.get(position, argument) for position, argument in enumerate(args)]
            value = self._call(*given, **{key: leaves.get(key, argument) for key, argument in kwargs.items()})
            if not value.requires_grad:
                slopes = tuple(torch.zeros_like(leaf) for leaf in leaves.values())
            else:
                ones = value.new_ones(()).expand_as(value)
                found = torch.autograd.grad(value, list(leaves.values()), ones, allow_unused=True)
                slopes = tuple(
                    torch.zeros_like(leaf) if slope is None else slope
                    for slope, leaf in zip(found, leaves.values(), strict=True)
                )
        return (value.detach(), *slopes)

    def _call(self, *args: Any, **kwargs: Any) -> Any:
        if self.kind == "call_method":
            return getattr(args[0], str(self.operation))(*args[1:], **kwargs)
        return self.operation(*args, **kwargs)


def _common_shape(shapes: list[torch.Size]) -> torch.Size:
    """Returns the shape that all broadcast to; at once where they are the same, which torch takes long to see."""
    first = shapes[0]
    return first if all(shape == first for shape in shapes) else torch.broadcast_shapes(*shapes)
