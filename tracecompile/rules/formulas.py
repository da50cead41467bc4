"""Surrogate functions that are written out: a formula for the value and one for its gradient, without a class."""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

from torch import Tensor
from torch.autograd import Function

from tracecompile.capture.tracing.surrogates import SLOT, SurrogateLeaf

Formula = Callable[..., Any]


class Surrogate(SurrogateLeaf):
    """A surrogate function by its formulas.

    Attributes:
        value: (*tensors) -> value, or a tuple of values.
        gradient: (*tensors, *gradients of the values) -> gradients of the tensors, None where there is none.
    """

    def __init__(self, name: str, tensors: int, value: Formula, gradient: Formula) -> None:
        """Takes the formulas; ``tensors`` is their number of arguments, gradients aside."""
        super().__init__(_function(name, value, gradient), tuple((SLOT, place) for place in range(tensors)))
        # Not submodules: that is for what the model trains.
        self.__dict__["formulas"] = (value, gradient)

    @property
    def value(self) -> Formula:
        """See the class."""
        return self._formulas[0]

    @property
    def gradient(self) -> Formula:
        """See the class."""
        return self._formulas[1]

    @property
    def _formulas(self) -> tuple[Formula, Formula]:
        found: tuple[Formula, Formula] = self.__dict__["formulas"]
        return found


def _function(name: str, value: Formula, gradient: Formula) -> type[Function]:
    class Written(Function):
        @staticmethod
        def forward(ctx: Any, *tensors: Tensor) -> Any:
            ctx.save_for_backward(*tensors)
            return value(*tensors)

        @staticmethod
        def backward(ctx: Any, *gradients: Any) -> Any:
            return gradient(*ctx.saved_tensors, *gradients)

    Written.__name__ = Written.__qualname__ = name
    return Written
