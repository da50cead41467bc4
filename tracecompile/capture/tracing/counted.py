"""Step numbers that are tensors: what ``for t in torch.arange(T)`` goes through.

They know nothing of the data, so Python may index with them, compare them and read them, as it may with the integers of
``range``; what is computed with them as tensors is recorded as it is.
"""

from __future__ import annotations

import operator
from collections.abc import Callable, Iterable
from typing import Any

from torch import Tensor

from tracecompile.capture.tracing.step_numbers import Conditions, StepNumber
from tracecompile.operations import Fact, operation_named, symbol_named

_READING: dict[str, Callable[[Any], Any]] = {"__bool__": bool, "__index__": operator.index}


class CountedTensors:
    """Remembers which tensors of one trace are step numbers, or comparisons of one."""

    def __init__(self) -> None:
        self._numbers: dict[int, tuple[Tensor, StepNumber]] = {}
        self._outcomes: dict[int, tuple[Tensor, Callable[[], bool]]] = {}

    def count(self, tensors: Iterable[Tensor], numbers: list[int], notes: Conditions) -> None:
        """Notes what has been counted.

        Args:
            tensors: One for each step.
            numbers: Their values.
            notes: Where comparisons of them go.
        """
        for tensor, number in zip(tensors, numbers, strict=True):
            self._numbers[id(tensor)] = (tensor, StepNumber(number, notes, len(numbers)))

    def number(self, value: Any) -> Any:
        """Returns the step number that a tensor is; anything else as it is."""
        if isinstance(value, (tuple, list)):
            return type(value)(map(self.number, value))
        if isinstance(value, slice):
            return slice(self.number(value.start), self.number(value.stop), self.number(value.step))
        return self._numbers[id(value)][1] if id(value) in self._numbers else value

    def follow(self, name: str, args: tuple[Any, ...], value: Any) -> None:
        """Notes what is computed of step numbers and Python's own numbers alone."""
        if len(args) != 2 or not any(id(arg) in self._numbers for arg in args):
            return
        left, right = map(self.number, args)
        symbol, facts = symbol_named(name), operation_named(name).facts
        if symbol is None or isinstance(left, Tensor) or isinstance(right, Tensor):
            return
        compute = symbol.function
        if symbol.reflected:
            left, right = right, left
        if Fact.COMPARES in facts:
            self._outcomes[id(value)] = (value, lambda: bool(compute(left, right)))
        elif Fact.WHOLE in facts and isinstance(number := compute(left, right), StepNumber):
            self._numbers[id(value)] = (value, number)

    def may_read(self, name: str, value: Any) -> bool:
        """Tells whether Python may ask a tensor for its value, by ``bool``, ``item`` or as an index."""
        return name in ("__bool__", "__index__", "item") and (id(value) in self._numbers or id(value) in self._outcomes)

    def read(self, name: str, value: Any) -> Any:
        """Returns the value of a tensor; a condition on it is noted."""
        if id(value) in self._outcomes:
            return self._outcomes[id(value)][1]()
        number = self.number(value)
        return number if name == "item" else _READING[name](number)
