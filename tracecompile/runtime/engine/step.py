"""A whole time step compiled as one call: what a stream and a model of one step take, where no steps come together.

A step is traced to elementary operations with the user's own surrogate derivatives, as a scan is, and compiled for the
very shapes that it is called with: to look at sizes that are left open takes longer than a small step does.
"""

from __future__ import annotations

import operator
import warnings
from collections.abc import Callable, Sequence
from dataclasses import dataclass, field
from typing import Any

import torch
from torch import Tensor, nn

from tracecompile.analysis.folding import runs_per_step
from tracecompile.runtime.engine.compiled import PLAIN
from tracecompile.runtime.engine.flat import precision
from tracecompile.runtime.engine.kernels import Kernels
from tracecompile.runtime.engine.step_written import assembler, tensors_of, write_step
from tracecompile.runtime.engine.traced import Untraceable, agree
from tracecompile.runtime.twins import Twins

MOST_KINDS = 8
"""Kinds of calls that one step is compiled for: a batch of another size at every step would wait for ever."""


@dataclass(frozen=True)
class StepCode:
    """A step as it is.

    Attributes:
        run: (twins, *inputs, *states, *arguments, *sums) to its results: outputs, states, sums and more.
        holders: Have the modules that it calls.
    """

    run: Callable[..., Any]
    holders: tuple[nn.Module, ...]

    def places(self) -> list[tuple[dict[str, Any], str]]:
        """Returns where its modules hold Parameters and buffers, each once."""
        found: dict[int, tuple[dict[str, Any], str]] = {}
        for module in (part for holder in self.holders for part in holder.modules()):
            for table in (module._parameters, module._buffers):
                found.update({id(value): (table, key) for key, value in table.items() if value is not None})
        return list(found.values())


@dataclass(frozen=True)
class Given:
    """What a step is called with.

    Attributes:
        inputs: With what does not change over time behind them.
        states: Before the step.
        arguments: Static values, or what they are computed of.
        sums: What has accrued.
        fresh: Whether nothing has: then that is what a sum begins with.
    """

    inputs: Sequence[Any]
    states: Sequence[Any]
    arguments: Sequence[Any]
    sums: Sequence[Tensor] = ()
    fresh: bool = False


@dataclass
class _Ready:
    """A compiled step for calls of one kind.

    Attributes:
        run: The tensors of a call to those that are made.
        results: Puts both together.
        sums: Like the sums after a step.
        starts: What nothing has accrued to, in their shapes.
        inputs: Kinds of the inputs of the last call.
        last: What the next call has beside its inputs, if it goes on from the last one.
    """

    run: Callable[..., Sequence[Tensor]]
    results: Callable[[Sequence[Tensor]], Any]
    sums: list[Any]
    starts: list[Tensor] | None = None
    inputs: list[Any] = field(default_factory=list)
    last: list[Any] = field(default_factory=list)


class CompiledStep:
    """One step of a program, compiled where that can be.

    Attributes:
        obstacle: Why it is run as it is; empty where it is not.
    """

    def __init__(self, kernels: Kernels, code: StepCode) -> None:
        """Compiles nothing yet."""
        self.kernels, self.code, self.obstacle = kernels, code, ""
        self._ready: dict[Any, _Ready] = {}
        self._last: _Ready | None = None
        self._checked = False
        self._places = code.places()
        if any(runs_per_step(part) for holder in code.holders for part in holder.modules()):
            self._refuse("a module in it has hooks or counts what passes through it")

    def begin(self) -> None:
        """Says that a sequence begins: the next step is compared with the step as it is by now."""
        self._checked = False

    def __call__(self, given: Given) -> Any:
        """Returns the results of a step; autograd is off."""
        held = [table[key] for table, key in self._places]
        ready = self._last
        if ready is None or not self._checked or not _goes_on(ready, given, held):
            ready = self._find(given, held)
            if ready is None:
                return self._as_it_is(given)
        if not self._checked:
            return self._compared(ready, given, held)
        results = self._run(ready, given, held)
        ready.last, self._last = [*results[1], *given.arguments, *held, *results[2]], ready
        return results

    def _run(self, ready: _Ready, given: Given, held: Sequence[Any]) -> Any:
        sums = self._starts(ready, given) if given.fresh else given.sums
        tensors = _dense([*given.inputs, *given.states, *given.arguments, *held, *sums])
        return ready.results([*tensors, *ready.run(*tensors)])

    def _as_it_is(self, given: Given) -> Any:
        return self.code.run(Twins({}), *given.inputs, *given.states, *given.arguments, *given.sums)

    def _find(self, given: Given, held: Sequence[Any]) -> _Ready | None:
        """Returns what is compiled for a call of this kind, compiled now if there is nothing; None where it cannot."""
        inputs = list(map(_kind, given.inputs))
        key = (*inputs, None, *map(_kind, (*given.states, *given.arguments, *held)), _precision(given))
        ready = self._ready.get(key)
        if ready is not None and not given.fresh and list(map(_kind, given.sums)) != ready.sums:
            ready = None
        if ready is None and not self.obstacle:
            ready = self._made(given, held)
            if ready is not None:
                self._ready[key] = ready
        if ready is not None:
            ready.inputs = inputs
        return None if self.obstacle else ready

    def _made(self, given: Given, held: Sequence[Any]) -> _Ready | None:
        """Compiles the step for calls like one; None, with a warning, where that cannot be."""
        expected = self._as_it_is(given)  # what does not fit fails here, in the code that is printed
        try:
            return self._compiled(given, held, expected)
        except Untraceable as reason:
            self._refuse(str(reason))
        except Exception as fault:  # the user's own surrogate is run by tracers here: anything may come out of it
            lines = [line.strip() for line in str(fault).splitlines() if line.strip()]
            self._refuse(" ".join([f"{type(fault).__name__}:", *lines[:2]]))
        return None

    def _compiled(self, given: Given, held: Sequence[Any], expected: Any) -> _Ready:
        if len(self._ready) == MOST_KINDS:
            raise Untraceable(f"they are called with tensors of more than {MOST_KINDS} kinds")
        flat = [*given.inputs, *given.states, *given.arguments, *given.sums]
        if not all(isinstance(value, (Tensor, *PLAIN)) for value in flat):
            raise Untraceable("they take a value that is neither a tensor nor a number")
        sums = [_like(start, after) for start, after in zip(given.sums, expected[2], strict=True)]
        before, count = [*given.inputs, *given.states, *given.arguments], len(given.sums)
        own = [value for value in held if isinstance(value, Tensor)]

        def code(*tensors: Tensor) -> list[Tensor]:
            left = iter(tensors)
            values = [next(left) if isinstance(value, Tensor) else value for value in before]
            twins = Twins(dict(zip(own, left, strict=False)))
            return tensors_of(self.code.run(twins, *values, *tensors[len(tensors) - count :]))

        flat = [value.detach() for value in _dense([*before, *held, *sums])]
        written = write_step(code, flat)
        kinds = tuple(_kind(value) for value in flat)
        run = self.kernels.get_step((written.text, kinds, _precision(given)), written.module, flat)
        return _Ready(run, assembler(expected, written.places), list(map(_kind, expected[2])))

    def _starts(self, ready: _Ready, given: Given) -> list[Tensor]:
        """Returns what nothing has accrued to, in the shapes for which the step is compiled."""
        if ready.starts is None or len(ready.starts) != len(given.sums):
            shapes = [torch.empty(kind[0], dtype=kind[1], device="meta") for kind in ready.sums]
            ready.starts = [_like(start, after) for start, after in zip(given.sums, shapes, strict=True)]
        return ready.starts

    def _compared(self, ready: _Ready, given: Given, held: Sequence[Any], *, anew: bool = False) -> Any:
        """Compares what is compiled with the step as it is now, and compiles it anew if they differ.

        A surrogate may have been given another slope since, which is a number in what is compiled.

        Returns:
            The results of the step as it is.
        """
        self._checked = True
        expected = self._as_it_is(given)
        if agree(self._run(ready, given, held), expected):
            return expected
        self._ready.clear()
        self._last = None
        again = None if anew else self._find(given, held)
        if again is not None:
            return self._compared(again, given, held, anew=True)
        if not self.obstacle:
            self._refuse("compiled, they do not compute the same")
        return expected

    def _refuse(self, reason: str) -> None:
        self.obstacle = reason
        self._ready.clear()
        warnings.warn(f"The steps are run without being compiled: {reason}", stacklevel=2)


def _goes_on(ready: _Ready, given: Given, held: Sequence[Any]) -> bool:
    """Tells whether a call has the very things of the last one, or its results, and inputs like that one."""
    now = [*given.states, *given.arguments, *held]
    if not given.fresh:
        now += given.sums
    same = len(now) <= len(ready.last) and all(map(operator.is_, now, ready.last))
    return same and list(map(_kind, given.inputs)) == ready.inputs


def _kind(value: Any) -> Any:
    """Returns all that compiled code depends on of a value; a tensor is made dense before it is handed over."""
    return (value.shape, value.dtype, value.device) if isinstance(value, Tensor) else (type(value), value)


def _dense(values: Sequence[Any]) -> list[Tensor]:
    """Returns the tensors among some values, each as its shape alone says where its elements lie."""
    return [value if value.is_contiguous() else value.contiguous() for value in values if isinstance(value, Tensor)]


def _precision(given: Given) -> Any:
    return next(precision(value.device) for value in (*given.inputs, *given.states) if isinstance(value, Tensor))


def _like(start: Tensor, after: Tensor) -> Tensor:
    """Returns what a sum begins with, in the shape and type that it has after a step."""
    return start.to(after.dtype).expand(after.shape).contiguous()
