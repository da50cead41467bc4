"""Python numbers that remember the graph node they came from.

``range(x.shape[0])`` and torch's argument parser want real integers; the program wants to know that a zero tensor's
batch size *is* the input's. A subclass of int serves both.
"""

from __future__ import annotations

import operator
from collections.abc import Callable
from typing import Any, Protocol

import torch
from torch import fx
from torch.utils import _pytree as pytree

from tracecompile.capture.tracing.step_numbers import StepNumber


class NumberRecorder(Protocol):
    """What a traced number needs of the trace that it belongs to."""

    def record_number(self, function: Callable[..., Any], *operands: Any) -> Any:
        """Writes down arithmetic on traced numbers."""

    def note_comparison(self, node: fx.Node, sides: tuple[Any, Any], outcome: bool) -> None:
        """Notes that Python compares a number, so that what follows may depend on its value."""


class TracedInt(int):
    """An integer that is the value of a node."""

    node: fx.Node
    recorder: NumberRecorder

    def __new__(cls, value: int, node: fx.Node, recorder: NumberRecorder) -> TracedInt:
        """Makes the integer; ``node`` computes it."""
        made = super().__new__(cls, value)
        made.node = node
        made.recorder = recorder
        return made

    def __reduce__(self) -> tuple[type[int], tuple[int]]:
        return int, (int(self),)

    def __deepcopy__(self, memo: dict[int, Any]) -> int:
        return int(self)

    __hash__ = int.__hash__


class TracedFloat(float):
    """A float that is the value of a node."""

    node: fx.Node
    recorder: NumberRecorder

    def __new__(cls, value: float, node: fx.Node, recorder: NumberRecorder) -> TracedFloat:
        """Makes the float; ``node`` computes it."""
        made = super().__new__(cls, value)
        made.node = node
        made.recorder = recorder
        return made

    def __reduce__(self) -> tuple[type[float], tuple[float]]:
        return float, (float(self),)

    def __deepcopy__(self, memo: dict[int, Any]) -> float:
        return float(self)

    __hash__ = float.__hash__


TracedNumber = TracedInt | TracedFloat


def plain(value: Any) -> Any:
    """Returns a number without its node; anything else as it is."""
    if isinstance(value, (TracedInt, StepNumber)):
        return int(value)
    return float(value) if isinstance(value, TracedFloat) else value


def snapshot(value: Any) -> Any:
    """Returns a value as ``meta["val"]`` keeps it: outside autograd."""
    return pytree.tree_map(lambda leaf: leaf.detach() if isinstance(leaf, torch.Tensor) else plain(leaf), value)


def _arithmetic(name: str, reflected: bool) -> Callable[[Any, Any], Any]:
    function = getattr(operator, name)

    def method(self: TracedNumber, other: Any) -> Any:
        if not isinstance(other, (int, float)) or isinstance(other, (bool, StepNumber)):
            return NotImplemented  # together with a step number it is one
        left, right = (other, self) if reflected else (self, other)
        return self.recorder.record_number(function, left, right)

    return method


def _negated(self: TracedNumber) -> Any:
    return self.recorder.record_number(operator.neg, self)


def _comparison(name: str, base: type) -> Callable[[Any, Any], Any]:
    function = getattr(base, f"__{name}__")

    def method(self: TracedNumber, other: Any) -> Any:
        if isinstance(other, StepNumber):
            return NotImplemented
        outcome = function(self, other)
        if outcome is not NotImplemented:
            self.recorder.note_comparison(self.node, (plain(self), plain(other)), outcome)
        return outcome

    return method


def _truth(self: TracedNumber) -> bool:
    outcome = bool(plain(self))
    self.recorder.note_comparison(self.node, (plain(self), 0), outcome)
    return outcome


for _class, _base in ((TracedInt, int), (TracedFloat, float)):
    for _name in ("lt", "le", "gt", "ge", "eq", "ne"):
        setattr(_class, f"__{_name}__", _comparison(_name, _base))
    setattr(_class, "__bool__", _truth)  # noqa: B010
for _name in ("add", "sub", "mul", "truediv", "floordiv", "mod", "pow"):
    for _class in (TracedInt, TracedFloat):
        setattr(_class, f"__{_name}__", _arithmetic(_name, reflected=False))
        setattr(_class, f"__r{_name}__", _arithmetic(_name, reflected=True))
for _class in (TracedInt, TracedFloat):
    setattr(_class, "__neg__", _negated)  # noqa: B010
