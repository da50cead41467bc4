"""The second way to run a recorded sequence: a chunk of time steps after the other, layer after layer within it.

The reference is ``Executor.steps``, one step after the other. Here the synapses see all steps of a chunk at once, side
by side in the batch, and the rest of every block is a scan. Spikes and gradients are the same up to rounding: a product
over more rows may round differently.
"""

from __future__ import annotations

import itertools
from collections.abc import Iterator, Mapping, Sequence
from typing import Any

import torch
from torch import Tensor

from tracecompile.analysis.folding import fold_applies, folded, repeated, unfolded
from tracecompile.layers import Jacobian, Unit
from tracecompile.program import StepProgram, example_value, step_results
from tracecompile.runtime.chunked.core_scan import Carried, CoreScan, ScanResult
from tracecompile.runtime.chunked.record import ChunkRecord, traced_names
from tracecompile.runtime.chunked.scans import Scans
from tracecompile.runtime.record import Record


class ChunkRun:
    """One sequence on its way."""

    def __init__(
        self, program: StepProgram, scans: Scans, record: Record, statics: Mapping[str, Any], states: Sequence[Tensor]
    ) -> None:
        """Stands before the first step.

        Args:
            program: After all passes, with units.
            scans: Runs the scans of the units.
            record: Takes everything.
            statics: Static values, detached.
            states: Initial states in the order of the carries, detached.
        """
        self.program, self.scans, self.statics = program, scans, statics
        self.recorded = ChunkRecord(record)
        placeholders = [carry.placeholder for carry in program.carries]
        self.states = dict(zip(placeholders, states, strict=True))
        outputs, following = step_results(program.step)
        self.outputs = [node.name for node in outputs]
        self.next = {name: node.name for name, node in zip(placeholders, following, strict=True)}
        self._cores = {unit.layers: self._cores_of(unit) for unit in program.units}

    def chunks(self, inputs: Mapping[str, Tensor], size: int) -> Iterator[list[Tensor]]:
        """Runs the sequence.

        Args:
            inputs: Of the step, by placeholder, (steps, *shape) each.
            size: Most steps of a chunk.

        Yields:
            The outputs of each chunk, (steps, *shape) each.
        """
        edges = self.recorded.record.bins.edges
        first_apart = changes_shape_at_first(self.program)
        folds = {*edges, 1} if first_apart else {*edges}
        end = 0
        for steps in chunk_lengths(edges, size, first_apart):
            begin, end = end, end + steps
            yield self._take({name: value[begin:end] for name, value in inputs.items()}, steps)
            if end in folds:
                self.recorded.fold()

    def _take(self, inputs: dict[str, Tensor], steps: int) -> list[Tensor]:
        self.recorded.enter(steps)
        chunk = _Chunk(self, inputs, steps)
        for unit in self.program.units:
            chunk.run(unit)
        names = traced_names(self.recorded.record)
        self.recorded.finish({name: chunk.value(name) for name in names}, chunk.norms)
        outputs = [chunk.value(name) for name in self.outputs]
        self.states = {name: chunk.next_state(name) for name in self.states}
        return outputs

    def cores(self, unit: Unit) -> tuple[list[CoreScan], list[int]]:
        """Returns what the scan of a unit carries along, and the places in the unit of the layers it belongs to."""
        return self._cores[unit.layers]

    def _cores_of(self, unit: Unit) -> tuple[list[CoreScan], list[int]]:
        cores, places, first = [], [], 0
        for place, index in enumerate(unit.layers):
            layer = self.program.layers[index]
            if isinstance(layer.response, Jacobian):
                cores.append(self.recorded.core_scan(layer, first, unit.carries))
                places.append(place)
            first += len(layer.outputs)
        return cores, places


class _Chunk:
    def __init__(self, run: ChunkRun, values: dict[str, Tensor], steps: int) -> None:
        self.run_, self.values, self.steps = run, values, steps
        self.norms: dict[str, tuple[Tensor, Tensor]] = {}
        self.following: dict[str, Tensor] = {}

    def value(self, name: str) -> Tensor:
        """Returns the values of a node in every step of the chunk."""
        if name not in self.values:
            if name in self.run_.states:
                first = self.run_.states[name].unsqueeze(0)
                self.values[name] = _joined(first, self.value(self.run_.next[name])[: self.steps - 1])
            else:
                static = self.run_.statics[name]
                self.values[name] = static.expand(self.steps, *static.shape)
        return self.values[name]

    def next_state(self, name: str) -> Tensor:
        """Returns the state after the chunk; a copy where it would keep the whole chunk alive."""
        if name in self.following:
            return self.following[name]
        return self.value(self.run_.next[name])[-1].clone()

    def run(self, unit: Unit) -> None:
        """Computes a block."""
        cut = self._below(unit)
        if unit.step is None:
            self.values.update(cut)
            return
        states = [self.run_.states[carry] for carry in unit.carries]
        statics = [self.run_.statics[name] for name in unit.step_statics]
        values = [cut[name] for name in unit.values]
        cores, layers = self.run_.cores(unit)
        recorded, scans = self.run_.recorded, self.run_.scans
        pieces: list[ScanResult] = []
        begin = 0
        for steps in scans.pieces(unit, self.steps):
            carried = [self._carried(core, unit, states, values) for core in cores]
            piece = [value.narrow(0, begin, steps) for value in values]
            found = scans.run(unit, cores, layers, steps, piece, states, statics, carried)
            for core, result in zip(cores, found.cores, strict=True):
                recorded.take(core, result, begin, steps)
            pieces.append(found)
            states, begin = found.carries, begin + steps
        joined = [_cat(rows) for rows in zip(*(found.outputs for found in pieces), strict=True)]
        self.values.update(zip(unit.outputs, joined, strict=True))
        self.following.update(zip(unit.carries, states, strict=True))
        for index, name in enumerate(unit.step_norms):
            means, variances = zip(*(found.norms[index] for found in pieces), strict=True)
            self.norms[name] = (_cat(means), _cat(variances))

    def _carried(self, core: CoreScan, unit: Unit, states: Sequence[Tensor], values: Sequence[Tensor]) -> Carried:
        own = {state: states[position] for state, position in core.states.items()}
        currents = [value[0] for name, value in zip(unit.values, values, strict=True) if name in core.variables]
        return self.run_.recorded.carried(core, own, currents)

    def _below(self, unit: Unit) -> dict[str, Tensor]:
        """Computes what depends on other blocks alone, for all steps at once where that is the same."""
        sources = {name: self.value(name) for name in unit.sources}
        statics = {name: self.run_.statics[name] for name in unit.below_statics}
        if unit.fold is not None and fold_applies(unit.fold, self.run_.program, sources):
            rows = next(iter(sources.values())).shape[1]
            for name in unit.fold.per_sample:
                statics[name] = repeated(statics[name], rows, self.steps)
            found, normed = unit.below(*(folded(value) for value in sources.values()), *statics.values())
            values = [unfolded(value, self.steps) for value in found]
            statistics = [_statistics(unfolded(value, self.steps)) for value in normed]
        else:
            each = [
                unit.below(*(value[time] for value in sources.values()), *statics.values())
                for time in range(self.steps)
            ]
            values = [torch.stack(rows) for rows in zip(*(found for found, _ in each), strict=True)]
            statistics = [_statistics(torch.stack(rows)) for rows in zip(*(normed for _, normed in each), strict=True)]
        self.norms.update(zip(unit.below_norms, statistics, strict=True))
        return dict(zip(unit.values, values, strict=True))


def _statistics(values: Tensor) -> tuple[Tensor, Tensor]:
    """Returns the mean and the biased variance of each step and channel of (steps, rows, channels, ...)."""
    axes = [axis for axis in range(1, values.ndim) if axis != 2]
    variance, mean = torch.var_mean(values, axes, unbiased=False)
    return mean, variance


def _joined(first: Tensor, rest: Tensor) -> Tensor:
    return torch.cat([first.to(rest.dtype).expand(1, *rest.shape[1:]), rest]) if rest.shape[0] else first


def _cat(rows: Sequence[Tensor]) -> Tensor:
    return rows[0] if len(rows) == 1 else torch.cat(list(rows))


def changes_shape_at_first(program: StepProgram) -> bool:
    """Tells whether a state begins in another shape or precision than it goes on with: the first step is then apart."""
    placeholders = {node.name: node for node in program.step.graph.nodes if node.op == "placeholder"}
    for carry, made in zip(program.carries, step_results(program.step)[1], strict=True):
        before, after = example_value(placeholders[carry.placeholder]), example_value(made)
        tensors = isinstance(before, Tensor) and isinstance(after, Tensor)
        if tensors and (before.shape, before.dtype) != (after.shape, after.dtype):
            return True
    return False


def chunk_lengths(edges: Sequence[int], size: int, first_apart: bool) -> list[int]:
    """Cuts a sequence into chunks of at most ``size`` steps that cross no edge of a bin."""
    found = [1] if first_apart else []
    start = len(found)
    for before, after in itertools.pairwise(edges):
        begin = max(before, start)
        while begin < after:
            found.append(min(size, after - begin))
            begin += found[-1]
    return found
