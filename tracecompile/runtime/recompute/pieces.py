"""Pieces of a sequence: run without a graph, and run with one and backward through it."""

from __future__ import annotations

import itertools
from collections.abc import Callable, Iterator, Mapping, Sequence
from dataclasses import dataclass
from typing import Any

import torch
from torch import Tensor

from tracecompile.analysis.linearity import draws_random
from tracecompile.errors import UnsupportedOperation
from tracecompile.program import StepProgram
from tracecompile.runtime.collector import Collector
from tracecompile.runtime.engine.scan import Engine
from tracecompile.runtime.forms import Form
from tracecompile.runtime.loop import Loop
from tracecompile.runtime.piece import run_piece
from tracecompile.runtime.recompute.cotangents import Cotangents
from tracecompile.runtime.recompute.stand_ins import in_place_of_parameters
from tracecompile.runtime.replay import drawn_again, random_states, set_random_states
from tracecompile.runtime.twins import LOST, Twins

Change = Callable[[Sequence[Tensor]], list[Tensor]]


@dataclass(frozen=True)
class Moment:
    """Where a piece begins.

    Attributes:
        states: Of the program, in the order of the carries.
        drawn: States of torch's generators, where the steps draw random numbers.
    """

    states: tuple[Tensor, ...]
    drawn: tuple[Tensor, ...] = ()


@dataclass(frozen=True)
class How:
    """How the steps of a sequence are computed.

    Attributes:
        program: After all passes.
        form: Its step as the model has it.
        engine: Runs the scans, where several steps are computed together.
        together: Whether they are.
        axes: Time axis of every sequence of inputs.
    """

    program: StepProgram
    form: Form
    engine: Engine
    together: bool
    axes: tuple[int, ...]


class Pieces:
    """One sequence in pieces.

    Attributes:
        edges: Where the pieces begin and end, in steps.
        statics: Static values by name; those that require a gradient get one.
        invariants: Values of the call that do not change over time; likewise.
        learned: Parameters of modules within the step; likewise.
        drawn: States of torch's generators before every step, where it is not known what was drawn between them.
        changes: What is done to the states before a step, by its number.
        runs: Pieces that were run so far, with a graph or without.
    """

    def __init__(
        self,
        how: How,
        edges: Sequence[int],
        statics: Mapping[str, Any],
        invariants: Sequence[Any],
        drawn: Sequence[tuple[Tensor, ...]] = (),
        changes: Mapping[int, Change] | None = None,
    ) -> None:
        """Takes the attributes."""
        self.how, self.edges, self.drawn, self.changes = how, tuple(edges), drawn, changes or {}
        self.statics, self.invariants = dict(statics), list(invariants)
        self.learned = [parameter for parameter in how.form.step.parameters() if parameter.requires_grad]
        self.draws = draws_in_steps(how.program)
        self.runs = 0
        self._plain = {name: _detached(value) for name, value in statics.items()}, [_detached(v) for v in invariants]

    @property
    def count(self) -> int:
        """How many pieces there are."""
        return len(self.edges) - 1

    def begin(self, states: Sequence[Tensor]) -> Moment:
        """Returns the moment before the next step, which begins with the states."""
        drawn = tuple(random_states()) if self.draws else ()
        return Moment(tuple(state.detach() for state in states), drawn)

    def forward(self, moment: Moment, piece: int, inputs: Sequence[Tensor], made: Collector | None = None) -> Moment:
        """Runs a piece without a graph, and lets a collector take its outputs.

        Args:
            moment: Before it.
            piece: Its number.
            inputs: Whole sequences, in the order of the program.
            made: Takes the outputs.
        """
        self.runs += 1
        begin, end = self.edges[piece], self.edges[piece + 1]
        cut = self._cut(inputs, begin, end)
        with torch.no_grad():
            loop = self._loop(moment.states, *self._plain)
            for outputs in self._outputs(loop, cut, begin, end):
                if made is not None:
                    (made.add_chunk if self.how.together else made.add)(outputs)
            return self.begin(loop.states)

    def again(self, moment: Moment, begin: int, end: int, inputs: Sequence[Tensor]) -> Moment:
        """Runs pieces once more; returns the moment before piece ``end``."""
        with drawn_again(moment.drawn):
            for piece in range(begin, end):
                moment = self.forward(moment, piece, inputs)
        return moment

    def backward(self, moment: Moment, piece: int, inputs: Sequence[Tensor], signals: Cotangents) -> None:
        """Runs a piece with a graph, and backward through it.

        Args:
            moment: Before it.
            piece: Its number.
            inputs: Whole sequences.
            signals: Take what the loss answers to the piece back to what it begins with and reads.

        Raises:
            UnsupportedOperation: Some of the gradient leads to a Parameter that no module holds.
        """
        self.runs += 1
        begin, end = self.edges[piece], self.edges[piece + 1]
        cut = self._cut(inputs, begin, end)

        def taken(twins: Twins | None) -> bool:
            leaves = signals.leaves(moment.states, cut)
            with torch.enable_grad(), drawn_again(moment.drawn):
                loop = self._loop(leaves.states, signals.statics, signals.invariants, twins)
                made = []
                for outputs in self._outputs(loop, leaves.inputs, begin, end):
                    made.append((outputs, loop.states))
                return signals.pull(leaves, made, begin, end)

        if taken(signals.twins):
            return
        # A hook, or what a module keeps beside its tables, has found its way back to the model itself.
        with in_place_of_parameters(self.how.form.step, signals.parameters):
            if not taken(None):
                raise UnsupportedOperation(*LOST)

    def _loop(
        self,
        states: Sequence[Tensor],
        statics: Mapping[str, Any],
        invariants: Sequence[Any],
        twins: Twins | None = None,
    ) -> Loop:
        return Loop(self.how.program, self.how.form, None, states, statics, invariants, twins)

    def _cut(self, inputs: Sequence[Tensor], begin: int, end: int) -> list[list[Tensor]]:
        """Returns what some steps take of the sequences: each step by itself, or all in one, see ``Leaves``."""
        parts = [value.narrow(axis, begin, end - begin) for value, axis in zip(inputs, self.how.axes, strict=True)]
        if self.how.together:
            return [[part] for part in parts]
        return [list(part.unbind(axis)) for part, axis in zip(parts, self.how.axes, strict=True)]

    def _outputs(self, loop: Loop, cut: Sequence[Sequence[Tensor]], begin: int, end: int) -> Iterator[Sequence[Tensor]]:
        """Yields the outputs of a piece: of every step, or once of all of them, (steps, *shape) each."""
        if self.how.together:
            named = zip(self.how.program.inputs, self.how.axes, cut, strict=True)
            given = {x.name: value.movedim(axis, 0) for x, axis, (value,) in named}
            yield run_piece(loop, self.how.engine, given, end - begin)
            return
        for time in range(begin, end):
            if self.draws and self.drawn:
                set_random_states(self.drawn[time])
            if time in self.changes:
                loop.states = self.changes[time](loop.states)
            yield loop.step(loop.with_draws([values[time - begin] for values in cut]))


def draws_in_steps(program: StepProgram) -> bool:
    """Tells whether a step draws random numbers."""
    return bool(program.draws.names) or any(draws_random(program, node) for node in program.step.graph.nodes)


def edges_of(lengths: Sequence[int]) -> list[int]:
    """Returns where pieces of some lengths begin and end."""
    return [0, *itertools.accumulate(lengths)]


def _detached(value: Any) -> Any:
    return value.detach() if isinstance(value, Tensor) else value
