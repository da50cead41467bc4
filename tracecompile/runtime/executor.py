"""Runs the emitted code of a program: prologue, steps, epilogue."""

from __future__ import annotations

import dataclasses
import functools
from collections.abc import Callable, Iterable, Iterator, Mapping, Sequence
from typing import Any

import torch
from torch import Tensor

from tracecompile.analysis.differentiable import GradientFlow
from tracecompile.analysis.linearity import Dropouts
from tracecompile.analysis.norms import values_normalised
from tracecompile.errors import InvalidInput
from tracecompile.program import StepProgram
from tracecompile.report import ExecutionReport
from tracecompile.rules import rule_of
from tracecompile.rules.written import in_sequence
from tracecompile.runtime.ahead import Ahead
from tracecompile.runtime.backward.gradients import StandIns
from tracecompile.runtime.bins import Clock, StreamClock
from tracecompile.runtime.collector import Collector
from tracecompile.runtime.ends import Ends, apart
from tracecompile.runtime.engine.choice import Choice
from tracecompile.runtime.engine.compiled import CompiledEngine
from tracecompile.runtime.engine.kernels import Kernels
from tracecompile.runtime.engine.scan import Engine
from tracecompile.runtime.engine.work import Work, worth_compiling
from tracecompile.runtime.executes import Observer
from tracecompile.runtime.forms import Forms
from tracecompile.runtime.live import count_states
from tracecompile.runtime.loop import Loop
from tracecompile.runtime.opened import Opened
from tracecompile.runtime.recompute.sequence import recomputed
from tracecompile.runtime.recompute.steps import KeptSteps
from tracecompile.runtime.record import Record
from tracecompile.runtime.recorded import recorded
from tracecompile.runtime.replay import random_states
from tracecompile.runtime.rerun import Prepared, going_on
from tracecompile.runtime.single import Single
from tracecompile.runtime.turn import Turn
from tracecompile.runtime.window import Window
from tracecompile.segment import segments_of, with_segments


class Executor:
    """The code of one program, ready to run on tensors of any batch size, length, dtype and device.

    Attributes:
        observer: Looks at what every recorded step begins with; a diagnostic may set it.
        stepped: Whether sequences are run by the reference, one step after the other, whatever the settings say.
        choice: What ran the last recorded sequence, or the last single step.
        single: Runs single steps.
        work: What was asked for so far, by which "auto" chooses.
    """

    def __init__(
        self,
        program: StepProgram,
        kernels: Kernels,
        turn: Turn,
        opened: Callable[[], Opened] | None = None,
        work: Work | None = None,
        values: int | None = None,
    ) -> None:
        """Takes a program that has gone through all passes, and what is one for its module, whatever it runs.

        Args:
            program: The program.
            kernels: Compiled code.
            turn: Of the thread that runs the net.
            opened: Returns the model as it is at this call; None for one that nobody changes.
            work: That of the program whose segment this one is; None for one of its own.
            values: How many the model normalises over time and batch, of the example; None for those of this program.
        """
        self._is_segment, self.work = work is not None, work or Work(worth_compiling(program))
        values = values or sum(map(values_normalised, with_segments(program)))
        self.opened = opened or functools.partial(Opened, program.root, None)
        self.ahead = None
        if any(segments_of(program.leaves)):
            self.ahead = Ahead(program, lambda each: Executor(each, kernels, turn, self.opened, self.work, values))
            program = self.ahead.program
        self.program, self.turn = program, turn
        self.ends, self.flow = Ends(program, self.opened, values), GradientFlow(program)
        self.dropouts = Dropouts(program)
        self.rule, self.forms = rule_of(program.settings), Forms(program)
        self.observer: Observer | None = None
        self.stepped = False
        self.as_they_are, self.compiled = Engine(), CompiledEngine(kernels)
        self.choice: Choice | None = None
        self.single = Single(self, kernels)

    def wants_window(self, prepared: Prepared) -> bool:
        """Tells whether a step will be trained by the rule, and not by autograd; for errors see ``wants_record``."""
        return self._trains(prepared) if self.rule.recomputes else self.wants_record(prepared)

    def wants_record(self, prepared: Prepared) -> bool:
        """Tells whether this call will be recorded.

        Raises:
            UnsupportedOperation: It would be, but a dropout in the step is active.
        """
        if not self.rule.records or not torch.is_grad_enabled():
            return False
        self.dropouts.refuse_active()
        return self._trains(prepared)

    def _trains(self, prepared: Prepared) -> bool:
        """Tells whether anything that this call depends on requires a gradient."""
        if not torch.is_grad_enabled():
            return False
        trained = any(parameter.requires_grad for parameter in self.program.root.parameters())
        return trained or any(value.requires_grad for value in prepared.tensors())

    # Whole sequences.

    def sequence(
        self,
        leaves: Sequence[Any],
        bins: int,
        left: Sequence[Tensor] | None = None,
        kept: Sequence[Any] | None = None,
    ) -> tuple[list[Any], Window | None, list[Tensor]]:
        """Runs a whole sequence, for a model that keeps states from the states that the last sequence left.

        Args:
            leaves: Of the call.
            bins: Of the rule.
            left: The states that the last sequence left.
            kept: The leaves as they may be kept for backward; None for as they are.

        Returns:
            The leaves of the model's result, the window where it was recorded, and the last states.
        """
        if not self._is_segment:
            self.work.begin()
        if self.ahead is not None:
            count = count_states(self.program.carries)
            leaves, kept = self.ahead.run(self, leaves, bins, None if left is None else left[count:])
            left = None if left is None else left[:count]
        drawn = random_states() if self.ends.draws else []
        prepared = self.ends.prepare(leaves, kept=kept)
        leaves = leaves if kept is None else kept
        # A state that starts as a row of a tensor of all steps would hold the whole tensor.
        own = [tuple(map(apart, values)) for values in (prepared.initial, prepared.invariants)]
        prepared = dataclasses.replace(prepared, initial=own[0], invariants=own[1])
        if left is not None:
            prepared = going_on(self.program, prepared, left)
        steps = self._length(prepared.inputs)
        if self.rule.recomputes and self._trains(prepared):
            return recomputed(self, leaves, prepared, steps, drawn)
        if self.wants_record(prepared):
            return recorded(self, leaves, prepared, steps, bins, drawn)
        collector = Collector(self.program, steps)
        loop = self.plain_loop(prepared)
        for outputs in self.steps(loop, prepared.inputs):
            collector.add(outputs)
        return self.ends.finish(collector.results(), loop.states, prepared.invariants), None, _detached(loop.states)

    def lasting(self, states: Sequence[Tensor]) -> list[Tensor]:
        """Returns what the last sequence has left of its states, and of those of the segments: see ``lasting``."""
        own = list(states[: count_states(self.program.carries)])
        return own if self.ahead is None else [*own, *self.ahead.left]

    def engine(self, choice: Choice, *, begins: bool = True) -> Engine:
        """Returns what runs the scans of a sequence that begins, or that goes on."""
        engine = self.compiled if choice.backend == "inductor" else self.as_they_are
        engine.forget()
        if begins:
            engine.begin()
        return engine

    def loop(self, prepared: Prepared, statics: Mapping[str, Any], record: Record | None) -> Loop:
        """Returns a loop that stands before the first step, and leads nowhere."""
        values = dict(zip(statics, _detached(statics.values()), strict=True))
        states, known = _detached(prepared.initial), _detached(prepared.invariants)
        return Loop(self.program, self.forms.asked(record), record, states, values, known)

    def plain_loop(self, prepared: Prepared) -> Loop:
        """Returns a loop over the step as the model has it, through which autograd may find its way."""
        statics = self.ends.statics(prepared)
        return Loop(self.program, self.forms.plain, None, prepared.initial, statics, prepared.invariants)

    def steps(self, loop: Loop, sequences: Sequence[Tensor], *, seen: bool = True) -> Iterator[Sequence[Tensor]]:
        """Takes a loop over the steps of sequences, one by one; yields their outputs. For ``seen`` see ``Runs``."""
        # The reference calls the user's functions as they are; writing them down takes longer than a few steps do.
        with in_sequence([] if self.stepped else [loop.form.step]):
            length = self._length(sequences)
            for time in range(length):
                inputs = loop.with_draws(self._slices(sequences, time))
                if self.observer is not None and loop.record is not None:
                    self.observer((*inputs, *loop.invariants, *loop.states))
                # The first one too: what does not fit fails there, in the code that is printed.
                yield loop.step(inputs, seen=seen or time in (0, length - 1))

    def _slices(self, inputs: Sequence[Tensor], time: int) -> list[Tensor]:
        return [value.select(x.dim, time) for x, value in zip(self.program.inputs, inputs, strict=True)]

    def _length(self, sequences: Sequence[Tensor]) -> int:
        if self.program.length is not None:
            return self.program.length
        lengths = {value.shape[x.dim] for x, value in zip(self.program.inputs, sequences, strict=True)}
        if len(lengths) > 1 or 0 in lengths:
            raise InvalidInput(
                f"The inputs have {sorted(lengths)} time steps.", "Pass inputs of one length, at least one step."
            )
        return int(lengths.pop())

    def open_window(self, clock: Clock, prepared: Prepared) -> Window:
        """Opens a window that begins with the prepared states."""
        stand_ins: StandIns = {}
        statics = self.ends.statics(prepared, stand_ins)
        window = Window(self.program, self.turn, clock, statics, stand_ins, prepared, self.opened())
        window.loop = self.loop(prepared, statics, window.record)
        return window

    def open_steps(self, bins: int, prepared: Prepared) -> Window | KeptSteps:
        """Opens a window for single steps, which begins with the prepared states."""
        self.single.begin()
        return KeptSteps(self, prepared) if self.rule.recomputes else self.open_window(StreamClock(bins), prepared)

    def execution(self) -> ExecutionReport | None:
        """Says how the last recorded sequence was run, or the last single step; None before the first."""
        if self.choice is None:
            return None
        report = self.compiled.report(self.program, self.choice)
        return dataclasses.replace(report, obstacles=(*report.obstacles, *self.single.obstacles))

    @property
    def looked_at(self) -> bool:
        """Whether every step is to be run by itself."""
        return self.stepped or self.observer is not None


def _detached(values: Iterable[Any]) -> list[Any]:
    return [value.detach() if isinstance(value, Tensor) else value for value in values]
