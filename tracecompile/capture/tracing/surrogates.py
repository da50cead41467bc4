"""The user's surrogate functions, kept whole.

A tracer that looks inside ``autograd.Function.forward`` records the hard threshold and loses the surrogate gradient
without a word. So each use becomes a call of one opaque leaf module, whatever way the user calls it.
"""

from __future__ import annotations

from collections.abc import Callable, Iterator
from contextlib import contextmanager
from typing import Any

from torch import nn
from torch.autograd import Function

# The class that every ``Function.apply`` ends in: patched here, a method bound at import time is caught as well.
from torch.autograd.function import _SingleLevelFunction

from tracecompile.capture.tracing.alone import other_threads

SLOT = "tensor"
Template = tuple[tuple[str, Any], ...]


class SurrogateLeaf(nn.Module):
    """Calls one of the user's autograd Functions.

    Attributes:
        function: The user's class, itself; its ``backward`` is the surrogate gradient.
        template: The call's arguments in order: ("tensor", position) or ("constant", value).
    """

    def __init__(self, function: type[Function], template: Template) -> None:
        super().__init__()
        self.function = function
        self.template = template

    def forward(self, *tensors: Any) -> Any:
        """Applies the function to the tensors and the constants of the user's call."""
        arguments = [tensors[value] if kind == SLOT else value for kind, value in self.template]
        return self.function.apply(*arguments)

    def extra_repr(self) -> str:
        """Names the function."""
        constants = [repr(value) for kind, value in self.template if kind != SLOT]
        return ", ".join([self.function.__name__, *constants])


@contextmanager
def surrogates_recorded(record: Callable[[type[Function], tuple[Any, ...]], Any]) -> Iterator[None]:
    """Sends every application of an autograd Function to ``record`` while the context is open."""

    elsewhere = other_threads()

    def apply(cls: type[Function], *args: Any) -> Any:
        return apply_directly(cls, args) if elsewhere() else record(cls, args)

    # The one private name that every spelling of a Function's apply ends in, pre-bound ones too.
    setattr(_SingleLevelFunction, "apply", classmethod(apply))  # noqa: B010
    try:
        yield
    finally:
        delattr(_SingleLevelFunction, "apply")


def apply_directly(function: type[Function], args: tuple[Any, ...]) -> Any:
    """Applies a function past the recording."""
    return super(_SingleLevelFunction, function).apply(*args)  # type: ignore[misc]
