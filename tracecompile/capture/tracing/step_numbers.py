"""Step numbers: what ``range`` and ``enumerate`` count in the user's code, so that no condition on them goes unseen.

The trace of a short example shows what a loop does at its few steps. ``if t >= 20`` looks like nothing there. So the
integers that the user's loops count remember that they are step numbers, through arithmetic too, and every comparison
of one is noted with both of its sides: what follows may depend on it, and the trace has to be longer than what it is
compared with.
"""

from __future__ import annotations

import builtins
import operator
import os
import sys
from collections.abc import Callable, Iterable, Iterator, Sized
from contextlib import contextmanager
from pathlib import Path
from types import FrameType
from typing import Any, Protocol

from tracecompile.capture.tracing.alone import other_threads
from tracecompile.capture.tracing.source import CAPTURE, TORCH
from tracecompile.operations import OPERATIONS, Fact

_RANGE, _ENUMERATE = builtins.range, builtins.enumerate
_FOREIGN = (TORCH, CAPTURE, str(Path(os.__file__).parent) + "/")
_LIBRARIES = str(Path(TORCH).parent) + "/"


class Conditions(Protocol):
    """What a step number needs of the trace that it belongs to."""

    def note_condition(self, number: StepNumber, other: Any, outcome: bool) -> None:
        """Notes that Python compares a step number with something."""


class StepNumber(int):
    """An integer that a loop of the user's counts, or that is computed from one.

    Attributes:
        notes: Where comparisons of it go.
        count: How far the loop counts; -1 where that is not known.
    """

    notes: Conditions
    count: int

    def __new__(cls, value: int, notes: Conditions, count: int) -> StepNumber:
        """Makes the integer."""
        made = super().__new__(cls, value)
        made.notes, made.count = notes, count
        return made

    def __reduce__(self) -> tuple[type[int], tuple[int]]:
        return int, (int(self),)

    def __deepcopy__(self, memo: dict[int, Any]) -> int:
        return int(self)

    def __bool__(self) -> bool:
        outcome = int(self) != 0
        self.notes.note_condition(self, 0, outcome)
        return outcome

    __hash__ = int.__hash__


def _arithmetic(name: str, reflected: bool) -> Callable[[StepNumber, Any], Any]:
    function = getattr(operator, name)

    def method(self: StepNumber, other: Any) -> Any:
        if not isinstance(other, int):
            return getattr(int(self), f"__{'r' if reflected else ''}{name}__")(other)
        left, right = (int(other), int(self)) if reflected else (int(self), int(other))
        value = function(left, right)
        if name in ("mod", "floordiv"):
            # What repeats with a period is seen only in a trace that is longer than two of them.
            self.notes.note_condition(self, 2 * right, True)
        return StepNumber(value, self.notes, self.count) if isinstance(value, int) else value

    return method


def _comparison(name: str) -> Callable[[StepNumber, Any], Any]:
    compare = getattr(int, f"__{name}__")

    def method(self: StepNumber, other: Any) -> Any:
        if isinstance(other, float):
            outcome = getattr(operator, name)(int(self), float(other))
        else:
            outcome = compare(int(self), int(other)) if isinstance(other, int) else NotImplemented
        if outcome is not NotImplemented:
            self.notes.note_condition(self, other, outcome)
        return outcome

    return method


for _operation in OPERATIONS:
    _symbol = _operation.symbol
    if Fact.COMPARES in _operation.facts:
        setattr(StepNumber, f"__{_symbol}__", _comparison(_symbol))
    if Fact.WHOLE in _operation.facts:
        setattr(StepNumber, f"__{_symbol}__", _arithmetic(_symbol, reflected=False))
        setattr(StepNumber, f"__r{_symbol}__", _arithmetic(_symbol, reflected=True))


class _CountedRange:
    """A range whose numbers are step numbers."""

    def __init__(self, numbers: range, notes: Conditions) -> None:
        self._numbers, self._notes = numbers, notes

    def __iter__(self) -> Iterator[StepNumber]:
        return self._counted(self._numbers)

    def __reversed__(self) -> Iterator[StepNumber]:
        return self._counted(reversed(self._numbers))

    def _counted(self, numbers: Iterable[int]) -> Iterator[StepNumber]:
        return (StepNumber(number, self._notes, len(self._numbers)) for number in numbers)

    def __getitem__(self, index: Any) -> Any:
        found = self._numbers[index]
        return found if isinstance(found, int) else _CountedRange(found, self._notes)

    def __getattr__(self, name: str) -> Any:
        return getattr(self._numbers, name)

    def __len__(self) -> int:
        return len(self._numbers)

    def __bool__(self) -> bool:
        return bool(self._numbers)

    def __contains__(self, item: Any) -> bool:
        return item in self._numbers

    def __eq__(self, other: Any) -> bool:
        return self._numbers == (other._numbers if isinstance(other, _CountedRange) else other)

    def __hash__(self) -> int:
        return hash(self._numbers)


@contextmanager
def loops_counted(notes: Conditions) -> Iterator[None]:
    """Lets the user's ``range`` and ``enumerate`` count in step numbers while the context is open."""
    elsewhere = other_threads()

    def counts(frame: FrameType) -> bool:
        return is_users(frame.f_code.co_filename) and not elsewhere()

    class Ranges(type):
        """Stands for the builtin: ``range(...)`` of other code is the real one, and ``isinstance`` takes both."""

        def __call__(cls, *bounds: Any) -> Any:
            numbers = _RANGE(*bounds)
            return _CountedRange(numbers, notes) if counts(sys._getframe(1)) else numbers

        def __instancecheck__(cls, instance: Any) -> bool:
            return isinstance(instance, (_RANGE, _CountedRange))

    def counted(iterable: Iterable[Any], start: int = 0) -> Iterator[tuple[int, Any]]:
        count = len(iterable) if isinstance(iterable, Sized) else -1
        return ((StepNumber(number, notes, count), item) for number, item in _ENUMERATE(iterable, start))

    class Enumerations(type):
        """Likewise for ``enumerate``."""

        def __call__(cls, iterable: Iterable[Any], start: int = 0) -> Any:
            return counted(iterable, start) if counts(sys._getframe(1)) else _ENUMERATE(iterable, start)

        def __instancecheck__(cls, instance: Any) -> bool:
            return isinstance(instance, _ENUMERATE)

    builtins.range = Ranges("range", (), {})  # type: ignore[misc, assignment]
    builtins.enumerate = Enumerations("enumerate", (), {})  # type: ignore[misc, assignment]
    try:
        yield
    finally:
        builtins.range, builtins.enumerate = _RANGE, _ENUMERATE  # type: ignore[misc]


def is_users(file: str) -> bool:
    """Tells whether code is the user's own, or a spiking library's, and not Python's or torch's."""
    return not file.startswith(_FOREIGN) or (file.startswith(_LIBRARIES) and not file.startswith(TORCH))
