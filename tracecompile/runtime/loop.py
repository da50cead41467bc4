"""The loop over time: whole sequences, streams, single steps, second passes and diagnostics are calls of it.

A program in trace form moves its states and its accruals on; what has accrued is folded into the record where a bin
ends. A piece of one step is the step of the program as it is, which is the reference, bit for bit the model; a longer
piece is computed block by block (see ``tracecompile.runtime.piece``).
"""

from __future__ import annotations

import sys
from collections.abc import Callable, Mapping, Sequence
from typing import Any

import torch
from torch import Tensor

from tracecompile.errors import InvalidInput
from tracecompile.layers import Accrual, Pair
from tracecompile.program import StepProgram
from tracecompile.rules.accumulation import accumulator_dtype
from tracecompile.rules.measured.horizon import CELLS
from tracecompile.rules.measured.lines import FROM
from tracecompile.runtime.bins import StreamClock
from tracecompile.runtime.engine.step import CompiledStep, Given
from tracecompile.runtime.forms import CoreForm, Form
from tracecompile.runtime.last import Last
from tracecompile.runtime.record import Moment, Record
from tracecompile.runtime.twins import Twins


class Loop:
    """One stretch of time on its way.

    Attributes:
        states: Of the program, in the order of the carries.
        accrued: What has accrued since the last fold, in the order of the accruals of the form.
        since: Number of steps since then.
        index: Their bin.
        last: The last step, None before the first.
        form: What is run.
        twins: Of the modules in it.
    """

    def __init__(
        self,
        program: StepProgram,
        form: Form,
        record: Record | None,
        states: Sequence[Tensor],
        statics: Mapping[str, Any],
        invariants: Sequence[Any],
        twins: Twins | None = None,
    ) -> None:
        """Stands before the first step.

        Args:
            program: After all passes.
            form: Of the program, see ``Forms.asked``.
            record: Takes what accrues; None to carry nothing beside the states.
            states: Initial ones.
            statics: Static values by name.
            invariants: Values of the call that do not change over time.
            twins: Of the modules in the step, which are called in their place.
        """
        self.record, self.invariants = record, list(invariants)
        self.twins = twins or Twins({})
        self.states = list(states)
        self.follow(program, form, statics)
        self.since = self.index = 0
        self.last: Last | None = None
        self.accrued: list[Tensor] = []
        self._cells: list[int] | None = None

    def follow(self, program: StepProgram, form: Form, statics: Mapping[str, Any]) -> None:
        """Goes on with another program of the same model, which carries the same: see ``Basis``."""
        self.program, self.form, self.statics = program, form, statics
        self.first_apart = program.first_apart
        assert program.statics is not None
        placeholders = set(program.invariants)
        self.arguments = [statics[name] for name in program.statics.names if name not in placeholders]
        self._run = self.twins.called(form.step)
        self._run_unseen: Callable[..., Any] | None = None

    def step(
        self, inputs: Sequence[Tensor], *, seen: bool = True, compiled: CompiledStep | None = None
    ) -> Sequence[Tensor]:
        """Takes one step; one that fails leaves everything as it was.

        Args:
            inputs: What ``with_draws`` returns.
            seen: Whether somebody may look at it as at the last step; False for one that others follow.
            compiled: Runs it, instead of the form.

        Returns:
            Its outputs.
        """
        fresh = self._begins()
        before = self._beginnings() if fresh else self.accrued
        if compiled is not None:
            given = Given([*inputs, *self.invariants], self.states, self.arguments, before, fresh)
            outputs, states, accrued, read, of_layers = compiled(given)
        else:
            run = self._run if seen or self.record is None or self.record.cells is not None else self._unseen()
            found = run(*inputs, *self.invariants, *self.states, *self.arguments, *before)
            outputs, states, accrued, read, of_layers = found
        self._count(1)
        self.states, self.accrued = states, accrued
        self.last = Last(read, of_layers)
        if self.record is not None and self.record.samples.pairs:
            self.sample(1, [value.unsqueeze(0) for value in read])
        if self._cells is not None:
            for core in self.form.cores:
                self.note(core, core.profiled(of_layers[core.index]), 0, 1)
        return list(outputs)

    def _unseen(self) -> Callable[..., Any]:
        """Returns what takes a step that leaves nothing of its layers behind."""
        if self._run_unseen is None:
            self._run_unseen = self.twins.called(self.form.unseen)
        return self._run_unseen

    def with_draws(self, inputs: Sequence[Tensor]) -> list[Tensor]:
        """Returns what the next step takes beside invariants and states: its inputs, and what it draws."""
        return [*inputs, *self.form.drawer.draw((*inputs, *self.invariants, *self.states))]

    @property
    def room(self) -> int:
        """How many steps of a stream may be taken as one piece."""
        clock, cells = (None, None) if self.record is None else (self.record.clock, self.record.cells)
        if not isinstance(clock, StreamClock):
            return sys.maxsize
        if self.first_apart and not clock.steps:
            return 1
        # Of a piece every step has its cell before the first one is noted.
        return min(clock.room, cells.before_merge) if isinstance(cells, StreamClock) else clock.room

    def enter(self, steps: int) -> None:
        """Says that so many steps come, all of one bin; folds where another bin has ended."""
        self._count(steps)
        if not self.accrued:
            self.accrued = self._beginnings()

    def _begins(self) -> bool:
        """Tells whether the next step finds nothing accrued, since a bin ends before it."""
        clock = None if self.record is None else self.record.clock
        if clock is None or not self.accrued:
            return True
        return clock.must_merge() or clock.next_slot != self.index or (self.first_apart and clock.steps == 1)

    def _count(self, steps: int) -> None:
        if self.record is None:
            return
        clock = self.record.clock
        if clock.must_merge():
            self.fold()
            self.record.merge()
        apart = self.first_apart and clock.steps == 1
        index = clock.tick(steps)
        if index != self.index or apart:
            self.fold()
        self.index = index
        self.since += steps
        self._cells = self.record.tick_cells(steps)

    def fold(self) -> None:
        """Folds what has accrued into the record."""
        if self.record is not None and self.since:
            self.record.fold(dict(zip(self.form.accruals, self.accrued, strict=True)), self.index, self.since)
            self.since, self.accrued = 0, []

    def _beginnings(self) -> list[Tensor]:
        states = dict(zip((carry.placeholder for carry in self.program.carries), self.states, strict=True))
        return [_beginning(accrual, states) for accrual in self.form.accruals]

    def moment(self) -> Moment | None:
        """Returns what the last step has left behind, before it is folded; None where there was none."""
        record, last = self.record, self.last
        if record is None or last is None or not self.since:
            return None
        return last.moment(self.program, self.form, record, self.index)

    def tensors(self) -> dict[str, Tensor]:
        """Returns what has accrued, by a name."""
        found = {f"accrued|{a.name}": total for a, total in zip(self.form.accruals, self.accrued, strict=False)}
        return found | {"since": torch.tensor([self.since, self.index])}

    def load(self, tensors: Mapping[str, Tensor]) -> None:
        """Goes on from what ``tensors`` returned.

        Raises:
            InvalidInput: That carries something else: other parameters were trained.
        """
        wanted = {f"accrued|{accrual.name}" for accrual in self.form.accruals}
        if (missing := sorted(wanted - set(tensors))) and int(tensors["since"][0]):
            raise InvalidInput(
                f"The snapshot lacks {missing[0]}: it was taken while other parameters were trained.",
                "Freeze the same parameters as when it was taken.",
            )
        self.since, self.index = tensors["since"].tolist()
        self.accrued = [tensors[f"accrued|{a.name}"].clone() for a in self.form.accruals] if self.since else []

    def sample(self, steps: int, read: Sequence[Tensor]) -> None:
        """Keeps what local graphs want to see as it was.

        Args:
            steps: How many have been taken at once.
            read: What the traces have added up of them, in their order, (steps, *shape) each.
        """
        if self.record is None:
            return
        samples, first = self.record.samples, self.record.clock.steps - steps
        for step in samples.due(self.index, steps):
            traced = zip(self.program.traces_kept, read, strict=True)
            samples.put(step, self.index, {accrual.pair: values[step - first] for accrual, values in traced})

    def settle(self) -> None:
        """Leaves everything in the record: the last step as its moment, and what has accrued."""
        if self.record is not None:
            self.record.moment = self.moment() or self.record.moment
            self.fold()
            self.last = None

    def note(self, core: CoreForm, given: Mapping[Pair, Tensor], first: int, steps: int) -> None:
        """Adds the mean answers of some steps of a piece to their cells of time, where these are kept.

        Args:
            core: Whose.
            given: As ``CoreForm.profiled`` names them: (steps,) means, or of one step, of any shape.
            first: Where in the piece the steps begin.
            steps: How many.
        """
        if self._cells is None or self.record is None:
            return
        responses, cells = self.record.responses[core.layer], self._cells[first : first + steps]
        found = {key: value for key, value in given.items() if not key[1].startswith(FROM)}
        if self.record.learns_starts:
            found |= {key: change[0] for key, change in responses.tangents.answers(given).items()}
        for key, value in found.items():
            means = value.mean().expand(1) if steps == 1 else value
            responses.note(key, means, cells, CELLS)


def _beginning(accrual: Accrual, states: Mapping[str, Tensor]) -> Tensor:
    """Returns what nothing has accrued to: a tangent has the shape of its state, a sum takes that of what is added."""
    if accrual.role != "tangent":
        return torch.zeros(())
    variable, name = accrual.pair
    state = states[name]
    start = torch.ones_like if variable == f"{FROM}{name}" else torch.zeros_like
    return start(state, dtype=accumulator_dtype(state.dtype))
