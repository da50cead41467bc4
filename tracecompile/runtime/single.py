"""Single steps of one program: of a stream, and of a model of one step."""

from __future__ import annotations

from collections.abc import Iterable, Sequence
from typing import Any

import torch
from torch import Tensor

from tracecompile.runtime.engine.choice import Choice, choose_step
from tracecompile.runtime.engine.kernels import Kernels
from tracecompile.runtime.engine.step import CompiledStep, Given, StepCode
from tracecompile.runtime.engine.work import Work, step_worth_compiling
from tracecompile.runtime.executes import Executes
from tracecompile.runtime.forms import Form
from tracecompile.runtime.loop import Loop
from tracecompile.runtime.outside import unseen
from tracecompile.runtime.recompute.steps import KeptSteps
from tracecompile.runtime.rerun import Prepared
from tracecompile.runtime.twins import Twins
from tracecompile.runtime.window import Window


class Single:
    """Runs them.

    Attributes:
        work: What was asked for so far, by which "auto" chooses.
        pieces_begun: Whether several steps of this sequence were run as one piece.
    """

    def __init__(self, executor: Executes, kernels: Kernels) -> None:
        """Takes what runs the program, and what compiles its steps."""
        self.executor, self.program, self.kernels = executor, executor.program, kernels
        self._compiled: dict[Form | None, CompiledStep] = {}
        self.pieces_begun = False
        self.work = Work(step_worth_compiling(self.program))
        self._settled: dict[bool, Choice] = {}
        """What runs steps that are trained, and others, where that is the same for all of them."""

    def begin(self) -> None:
        """Says that a sequence of steps begins: what is compiled or written down is compared with what it is of."""
        self.pieces_begun = False
        for compiled in self._compiled.values():
            compiled.begin()

    @property
    def obstacles(self) -> list[str]:
        """Why steps are not compiled that were to be, one sentence an entry."""
        found = dict.fromkeys(compiled.obstacle for compiled in self._compiled.values() if compiled.obstacle)
        return [f"single steps: not compiled, {reason}" for reason in found]

    def of(self, prepared: Prepared, time: int = 0, states: Sequence[Tensor] | None = None) -> Prepared:
        """Takes one step out of sequences, from the states that they start from or others."""
        named = zip(self.program.inputs, prepared.inputs, strict=True)
        inputs = tuple(value.select(x.dim, time) for x, value in named)
        return Prepared(inputs, prepared.invariants, tuple(states or prepared.initial), prepared.device)

    def run(self, prepared: Prepared, window: Window | KeptSteps | None) -> tuple[list[Tensor], list[Tensor]]:
        """Runs one step from the prepared states, recorded in a window; returns outputs and next states, no anchors."""
        outputs: Sequence[Tensor]
        states: Sequence[Tensor]
        if window is not None:
            loop = self.loop(prepared, window)
            with torch.no_grad(), unseen():
                outputs, states = self.recorded(loop, _detached(prepared.inputs)), loop.states
        elif self._compiles(prepared.inputs, trained=False):
            outputs, states = self._untrained(prepared)
        else:
            loop = self.executor.plain_loop(prepared)
            outputs = loop.step(loop.with_draws(prepared.inputs))
            states = loop.states
        self.executor.ends.move_statistics([carry.statistic for carry in self.program.carries], states)
        return list(outputs), list(states)

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
        compiled = self._of_form(loop.form) if self._compiles(inputs, trained=True) else None
        inputs = loop.with_draws(inputs)
        if self.executor.observer is not None and loop.record is not None:
            self.executor.observer((*inputs, *loop.invariants, *loop.states))
        return loop.step(inputs, compiled=compiled)

    def _compiles(self, inputs: Sequence[Tensor], *, trained: bool) -> bool:
        """Tells whether a step is to be compiled."""
        executor = self.executor
        if executor.looked_at:
            return False
        if not trained and torch.is_grad_enabled():
            executor.choice = Choice("eager", 1, "a single step, which autograd may go through")
            return False
        if trained not in self._settled:
            choice = choose_step(self.program, inputs, self.work if trained else None)
            if trained and self.program.settings.backend == "auto":
                executor.choice = choice
                return choice.backend == "inductor"
            self._settled[trained] = choice
        executor.choice = self._settled[trained]
        return executor.choice.backend == "inductor"

    def _of_form(self, form: Form) -> CompiledStep:
        """Returns what runs the step of a form compiled."""
        if form not in self._compiled:
            code = StepCode(lambda twins, *given: twins.called(form.step)(*given), (form.step,))
            self._compiled[form] = CompiledStep(self.kernels, code)
        return self._compiled[form]

    def _untrained(self, prepared: Prepared) -> tuple[Sequence[Tensor], Sequence[Tensor]]:
        """Runs the step as the model has it, and all that does not change over time with it, as one call."""
        plain, ends = self.executor.forms.plain, self.executor.ends
        if None not in self._compiled:
            self._compiled[None] = CompiledStep(self.kernels, self._whole(plain))
        inputs = [*prepared.inputs, *plain.drawer.draw((*prepared.inputs, *prepared.invariants, *prepared.initial))]
        attributes = ends.attributes(ends.static_code.attributes, prepared.device)
        results = self._compiled[None](Given([*inputs, *prepared.invariants], prepared.initial, attributes))
        return results[0], results[1]

    def _whole(self, plain: Form) -> StepCode:
        program, static = self.program, self.executor.ends.static_code
        first = len(program.inputs) + len(program.draws.names)
        last = first + len(program.invariants)
        count = last + len(program.carries)

        def run(twins: Twins, *given: Any) -> Any:
            values = twins.called(static.graph)(*given[count:], *given[first:last])
            named = dict(zip(static.names, values, strict=True))
            arguments = [named[name] for name in static.names if name not in program.invariants]
            return twins.called(plain.step)(*given[:count], *arguments)

        return StepCode(run, (static.graph, plain.step))


def _detached(values: Iterable[Any]) -> list[Any]:
    return [value.detach() if isinstance(value, Tensor) and value.requires_grad else value for value in values]
