"""Units over some steps of time: synapses see all of them at once, side by side in the batch, the rest is a scan."""

from __future__ import annotations

from collections.abc import Iterable, Mapping, Sequence
from typing import Any

import torch
from torch import Tensor

from tracecompile.analysis.folding import fold_applies, folded, repeated, unfolded
from tracecompile.layers import Accrual, Fold, Pair
from tracecompile.program import step_results
from tracecompile.rules.accumulation import accumulator_dtype
from tracecompile.rules.norm import mean_and_variance
from tracecompile.runtime.engine.scan import Answers, Engine, Stretch
from tracecompile.runtime.forms import UnitForm
from tracecompile.runtime.loop import Loop
from tracecompile.runtime.normed import OverSteps, norms_by_step
from tracecompile.units import Moves, Unit


class Span:
    """Some steps on their way.

    Attributes:
        values: Of nodes in every step, (steps, *shape) each.
        states: At the beginning, by placeholder.
        next: What each of them is one step later.
        norms: (means, variances) of the inputs of normalisations, (steps, channels) each.
        following: States after the last step, those that are known already.
        accrued: What has accrued, by name.
        of_layers: As ``Last`` has them.
    """

    def __init__(self, loop: Loop, engine: Engine, values: dict[str, Tensor], steps: int) -> None:
        """Stands before the first step, with the inputs among the values."""
        self.loop, self.engine, self.values, self.steps = loop, engine, values, steps
        placeholders = [carry.placeholder for carry in loop.program.carries]
        self.states = dict(zip(placeholders, loop.states, strict=True))
        following = step_results(loop.program.step)[1]
        self.next = {name: node.name for name, node in zip(placeholders, following, strict=True)}
        self.norms: dict[str, tuple[Tensor, Tensor]] = {}
        self.following: dict[str, Tensor] = {}
        self.accrued = dict(zip((accrual.name for accrual in loop.form.accruals), loop.accrued, strict=True))
        self.of_layers: dict[int, Any] = {}

    def value(self, name: str) -> Tensor:
        """Returns the values of a node in every step of the piece."""
        if name not in self.values:
            if name in self.states:
                first = self.states[name].unsqueeze(0)
                self.values[name] = _joined(first, self.value(self.next[name])[: self.steps - 1])
            else:
                static = self.loop.statics[name]
                self.values[name] = static.expand(self.steps, *static.shape)
        return self.values[name]

    def compute(self, units: Iterable[UnitForm]) -> None:
        """Computes units, each for all steps before the next unit."""
        for form in units:
            self._block(form)
            if form.unit.moves is not None:
                self._move(form.unit.moves)

    def _block(self, form: UnitForm) -> None:
        unit = form.unit
        with self.engine.products(self.loop.twins.of(unit.below), map(self.loop.statics.get, unit.below_statics)):
            cut = self._below(unit)
        cut.update({name: self.value(name) for name in unit.values[len(unit.made) :]})
        if form.step is None:
            self.values.update(cut)
            return
        states: Sequence[Tensor] = [self.states[carry] for carry in unit.carries]
        statics = [self.loop.statics[name] for name in unit.step_statics]
        values = [cut[name] for name in unit.values]
        accrued: Sequence[Tensor] = self._begun(form, states, values)
        outputs, norms, begin = [], [], 0
        answers = self._answers()
        for steps in self.engine.pieces(form, self.steps):
            now = values if steps == self.steps else [value.narrow(0, begin, steps) for value in values]
            found = self.engine.run(Stretch(form, steps, now, states, statics, accrued, self.loop.twins), answers)
            states, accrued = found.carries, found.accrued
            outputs.append(found.outputs)
            norms.append(found.norms)
            self.of_layers.update(zip(unit.layers, found.of_layers, strict=True))
            self.note(form, found.answers, begin, steps)
            begin += steps
        self.values.update(zip(unit.outputs, (_cat(rows) for rows in zip(*outputs, strict=True)), strict=True))
        self.following.update(zip(unit.carries, states, strict=True))
        self.accrued.update(zip((accrual.name for accrual in form.accruals), accrued, strict=True))
        for name, pairs in zip(unit.step_norms, zip(*norms, strict=True), strict=True):
            means, variances = zip(*pairs, strict=True)
            self.norms[name] = (_cat(means), _cat(variances))

    def _begun(self, form: UnitForm, states: Sequence[Tensor], values: Sequence[Tensor]) -> list[Tensor]:
        """Returns what has accrued, every sum in the shape that it will have: compiled code is that of its shapes."""
        found = []
        for accrual in form.accruals:
            total = self.accrued[accrual.name]
            if accrual.role == "response" and total.ndim == 0:
                total = self._shaped(form, accrual, states, values, total)
            found.append(total)
        return found

    def _shaped(
        self,
        form: UnitForm,
        accrual: Accrual,
        states: Sequence[Tensor],
        values: Sequence[Tensor],
        zero: Tensor,
    ) -> Tensor:
        layer = next(each for each in self.loop.program.layers if each.name == accrual.layer)
        known = [state for carry, state in zip(form.unit.carries, states, strict=True) if carry in layer.states]
        known += [value[0] for name, value in zip(form.unit.values, values, strict=True) if name in layer.currents]
        if not known:
            return zero
        shape = torch.broadcast_shapes(*(value.shape for value in known))
        return torch.zeros(shape, dtype=accumulator_dtype(known[0].dtype), device=known[0].device)

    def _answers(self) -> Answers:
        record = self.loop.record
        if record is None or record.cells is None:
            return "last"
        return "each" if record.learns_starts else "means"

    def note(self, form: UnitForm, answers: Sequence[Mapping[Pair, Tensor]], begin: int, steps: int) -> None:
        """Keeps the mean answers of the steps; one by one where they are to be taken back to initial states."""
        record = self.loop.record
        if record is None or record.cells is None:
            return
        for core, given in zip(form.cores, answers, strict=True):
            if record.learns_starts:
                for step in range(steps):
                    one = {pair: value[step] for pair, value in given.items()}
                    self.loop.note(core, one, begin + step, 1)
            else:
                self.loop.note(core, given, begin, steps)

    def _below(self, unit: Unit) -> dict[str, Tensor]:
        """Computes what depends on other blocks alone, for all steps at once where that is the same."""
        sources = {name: self.value(name) for name in unit.sources}
        statics = {name: self.loop.statics[name] for name in unit.below_statics}
        below = self.loop.twins.called(unit.below)
        # What runs once more with a graph has to round as it did without.
        at_once = unit.fold is not None and self.steps > 1 and self.loop.record is not None
        if at_once and (norms := norms_by_step(unit, self.loop.program, sources)):
            return self._normed(unit, norms, sources, statics)
        if unit.fold is not None and fold_applies(unit.fold, self.loop.program, sources):
            given = self._repeated(unit.fold, sources, statics)
            found, normed = below(*(folded(value) for value in sources.values()), *given)
            values = [unfolded(value, self.steps) for value in found]
            statistics = [_statistics(unfolded(value, self.steps)) for value in normed]
        else:
            each = [
                below(*(value[time] for value in sources.values()), *statics.values()) for time in range(self.steps)
            ]
            values = [torch.stack(rows) for rows in zip(*(found for found, _ in each), strict=True)]
            statistics = [_statistics(torch.stack(rows)) for rows in zip(*(normed for _, normed in each), strict=True)]
        self.norms.update(zip(unit.below_norms, statistics, strict=True))
        return dict(zip(unit.made, values, strict=True))

    def _normed(
        self, unit: Unit, norms: frozenset[str], sources: Mapping[str, Tensor], statics: Mapping[str, Tensor]
    ) -> dict[str, Tensor]:
        """Computes what ``_below`` does where batch norms take the statistics of every step."""
        assert unit.fold is not None
        over = OverSteps(self.loop.twins.of(unit.below), unit.below.graph, norms, self.steps)
        found, _ = over.run(
            *(folded(value) for value in sources.values()), *self._repeated(unit.fold, sources, statics)
        )
        self.norms.update((name, over.statistics[name]) for name in unit.below_norms)
        return {name: unfolded(value, self.steps) for name, value in zip(unit.made, found, strict=True)}

    def _repeated(self, fold: Fold, sources: Mapping[str, Tensor], statics: Mapping[str, Any]) -> list[Any]:
        """Returns static values as a fold takes them."""
        rows = next(iter(sources.values())).shape[1]
        return [
            repeated(value, rows, self.steps) if name in fold.per_sample else value for name, value in statics.items()
        ]

    def _move(self, moves: Moves) -> None:
        """Moves statistics step by step."""
        reads = [self.value(name) for name in moves.reads]
        statics = [self.loop.statics[name] for name in moves.statics]
        now: Sequence[Tensor] = [self.states[name] for name in moves.statistics]
        rows, move = [], self.loop.twins.called(moves.graph)
        for time in range(self.steps):
            now = move(*(value[time] for value in reads), *now, *statics)
            rows.append(now)
        for name, values in zip(moves.statistics, zip(*rows, strict=True), strict=True):
            self.values[self.next[name]] = torch.stack(values)


def _statistics(values: Tensor) -> tuple[Tensor, Tensor]:
    """Returns the mean and the biased variance of each step and channel of (steps, rows, channels, ...)."""
    return mean_and_variance(values, tuple(axis for axis in range(1, values.ndim) if axis != 2))


def _joined(first: Tensor, rest: Tensor) -> Tensor:
    return torch.cat([first.to(rest.dtype).expand(1, *rest.shape[1:]), rest]) if rest.shape[0] else first


def _cat(rows: Sequence[Tensor]) -> Tensor:
    return rows[0] if len(rows) == 1 else torch.cat(list(rows))
