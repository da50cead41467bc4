"""A piece of several time steps, block by block.

The synapses see all steps of a piece at once, side by side in the batch, and the rest of every block is a scan. Spikes
and gradients are those of the steps one by one, up to rounding: a product over more rows may round differently.

Units that take turns take one step each before the next one of any.
"""

from __future__ import annotations

import itertools
from collections.abc import Iterator, Mapping, Sequence

import torch
from torch import Tensor

from tracecompile.layers import STATISTICS, Accrual, Pair
from tracecompile.program import step_results
from tracecompile.rules.accumulation import all_accumulated
from tracecompile.runtime.engine.scan import Engine
from tracecompile.runtime.foreseen import foreseen
from tracecompile.runtime.forms import UnitForm
from tracecompile.runtime.last import Last
from tracecompile.runtime.loop import Loop
from tracecompile.runtime.span import Span


def pieces(loop: Loop, engine: Engine, inputs: Mapping[str, Tensor], size: int) -> Iterator[list[Tensor]]:
    """Runs a sequence in pieces.

    Args:
        loop: Stands before the first step, with a record.
        engine: Runs the scans.
        inputs: Of the step, by placeholder, (steps, *shape) each.
        size: Most steps of a piece.

    Yields:
        The outputs of each piece, (steps, *shape) each.
    """
    assert loop.record is not None
    end, cut = 0, lengths(loop.record.bins.edges, size, loop.first_apart)
    for steps in cut:
        begin, end = end, end + steps
        loop.enter(steps)
        if not begin:
            engine.foresee(lambda: foreseen(loop, engine, inputs, cut))
        yield run_piece(loop, engine, {name: value[begin:end] for name, value in inputs.items()}, steps)


def run_piece(loop: Loop, engine: Engine, inputs: Mapping[str, Tensor], steps: int) -> list[Tensor]:
    """Draws what the next steps of a loop take, and runs them as one piece; returns their outputs, (steps, *shape).

    Args:
        loop: Stands before them.
        engine: Runs the scans.
        inputs: Of these steps, by placeholder, (steps, *shape) each.
        steps: How many.
    """
    return _Piece(loop, engine, {**inputs, **_drawn(loop, inputs, steps)}, steps).run()


def _drawn(loop: Loop, inputs: Mapping[str, Tensor], steps: int) -> dict[str, Tensor]:
    """Draws for some steps, one after the other; the states have the shapes that they begin with."""
    names = loop.program.draws.names
    if not names:
        return {}
    rows = [loop.with_draws([value[time] for value in inputs.values()])[len(inputs) :] for time in range(steps)]
    return {name: torch.stack(drawn) for name, drawn in zip(names, zip(*rows, strict=True), strict=True)}


def lengths(edges: Sequence[int], size: int, first_apart: bool) -> list[int]:
    """Cuts a sequence into pieces of at most ``size`` steps that cross no edge of a bin."""
    found = [1] if first_apart else []
    start = len(found)
    for before, after in itertools.pairwise(edges):
        begin = max(before, start)
        while begin < after:
            found.append(min(size, after - begin))
            begin += found[-1]
    return found


class _Piece(Span):
    """All units over a piece."""

    def run(self) -> list[Tensor]:
        """Computes the piece; returns its outputs and moves the loop on."""
        loop = self.loop
        for in_turn, units in itertools.groupby(loop.form.units, lambda form: form.unit.in_turn):
            if in_turn:
                self._take_turns(list(units))
            else:
                self.compute(units)
        read = []
        # Where nothing is trained the loop carries states alone.
        for accrual in (each for each in loop.program.traces_kept if each.name in self.accrued):
            values = self._read(accrual)
            self.accrued[accrual.name] = all_accumulated(self.accrued[accrual.name], values, accrual.decay)
            read.append(values)
        outputs = [self.value(node.name) for node in step_results(loop.program.step)[0]]
        loop.states = [self._next_state(name) for name in self.states]
        loop.accrued = [self.accrued[accrual.name] for accrual in loop.form.accruals]
        loop.last = Last([values[-1] for values in read], self.of_layers)  # type: ignore[arg-type]
        loop.sample(self.steps, read)
        return outputs

    def _take_turns(self, units: Sequence[UnitForm]) -> None:
        """Takes one step of every unit before the next one of any."""
        states = {name: self.states[name] for name in self._states_of(units)}
        turns = []
        for time in range(self.steps):
            turns.append(_Turn(self, time, states))
            turns[-1].compute(units)
            states = turns[-1].states_after()
        self.following.update(states)
        for name in turns[0].values:
            self.values[name] = torch.cat([turn.values[name] for turn in turns])
        for name in turns[0].norms:
            means, variances = zip(*(turn.norms[name] for turn in turns), strict=True)
            self.norms[name] = (torch.cat(means), torch.cat(variances))

    def _states_of(self, units: Sequence[UnitForm]) -> list[str]:
        """Returns the states that are made by these units, and the delays of what is."""
        made = {output for form in units for output in form.unit.outputs}
        found = {carry for form in units for carry in form.unit.carries}
        for form in units:
            found.update(() if form.unit.moves is None else form.unit.moves.statistics)
        for _ in self.next:
            found |= {name for name, value in self.next.items() if value in made or value in found}
        return sorted(found)

    def _read(self, accrual: Accrual) -> Tensor:
        value, statistic = accrual.pair
        return self.norms[value][STATISTICS.index(statistic)] if statistic else self.value(value)

    def _next_state(self, name: str) -> Tensor:
        """Returns the state after the piece; a copy where it would keep the whole piece alive."""
        if name in self.following:
            return self.following[name]
        return self.value(self.next[name])[-1].clone()


class _Turn(Span):
    """One step of some units within a piece."""

    def __init__(self, piece: _Piece, time: int, states: dict[str, Tensor]) -> None:
        super().__init__(piece.loop, Engine(), {}, 1)
        self.piece, self.time, self.states = piece, time, states
        self.accrued, self.of_layers = piece.accrued, piece.of_layers

    def value(self, name: str) -> Tensor:
        """Returns the value of a node in this step."""
        if name in self.values:
            return self.values[name]
        if name in self.states:
            return self.states[name].unsqueeze(0)
        return self.piece.value(name).narrow(0, self.time, 1)

    def note(self, form: UnitForm, answers: Sequence[Mapping[Pair, Tensor]], begin: int, steps: int) -> None:
        """Keeps the mean answers where the piece does."""
        self.piece.note(form, answers, self.time + begin, steps)

    def states_after(self) -> dict[str, Tensor]:
        """Returns the states of these units one step later."""
        return {name: self._after(name) for name in self.states}

    def _after(self, name: str) -> Tensor:
        return self.following[name] if name in self.following else self.value(self.next[name])[0]
