"""Single steps of one program: of a stream, and of a model of one step."""

from __future__ import annotations

from collections.abc import Iterable, Sequence
from typing import Any

import torch
from torch import Tensor

from tracecompile.runtime.executes import Executes
from tracecompile.runtime.loop import Loop
from tracecompile.runtime.outside import unseen
from tracecompile.runtime.recompute.steps import KeptSteps
from tracecompile.runtime.rerun import Prepared
from tracecompile.runtime.window import Window


class Single:
    """Runs them."""

    def __init__(self, executor: Executes) -> None:
        """Takes what runs the program."""
        self.executor, self.program = executor, executor.program

    def of(self, prepared: Prepared, time: int = 0, states: Sequence[Tensor] | None = None) -> Prepared:
        """Takes one step out of sequences, from the states that they start from or others."""
        named = zip(self.program.inputs, prepared.inputs, strict=True)
        inputs = tuple(value.select(x.dim, time) for x, value in named)
        return Prepared(inputs, prepared.invariants, tuple(states or prepared.initial), prepared.device)

    def run(self, prepared: Prepared, window: Window | KeptSteps | None) -> tuple[list[Tensor], list[Tensor]]:
        """Runs one step from the prepared states, recorded in a window; returns outputs and next states, no anchors."""
        loop = self.loop(prepared, window)
        if window is None:
            outputs = loop.step(loop.with_draws(prepared.inputs))
        else:
            with torch.no_grad(), unseen():
                outputs = self.recorded(loop, _detached(prepared.inputs))
        self.executor.ends.move_statistics([carry.statistic for carry in self.program.carries], loop.states)
        return list(outputs), list(loop.states)

    def loop(self, prepared: Prepared, window: Window | KeptSteps | None) -> Loop:
        """Returns the loop of a window, or one of its own without one, before a step from the prepared states."""
        if window is None:
            return self.executor.plain_loop(prepared)
        loop = window.loop
        assert loop is not None
        if loop.program is not self.program:
            statics = self.executor.ends.statics(prepared)
            values = dict(zip(statics, _detached(statics.values()), strict=True))
            loop.follow(self.program, self.executor.forms.asked(loop.record), values)
        loop.states, loop.invariants = _detached(prepared.initial), _detached(prepared.invariants)
        return loop

    def recorded(self, loop: Loop, inputs: Sequence[Tensor]) -> Sequence[Tensor]:
        """Takes a loop over one step, and lets the observer see what it begins with; returns its outputs."""
        inputs = loop.with_draws(inputs)
        if self.executor.observer is not None and loop.record is not None:
            self.executor.observer((*inputs, *loop.invariants, *loop.states))
        return loop.step(inputs)


def _detached(values: Iterable[Any]) -> list[Any]:
    return [value.detach() if isinstance(value, Tensor) else value for value in values]
