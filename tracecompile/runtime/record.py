"""The record of one sequence (or of one window of a stream): statistics going in, gradients coming out."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass, replace

from torch import Tensor

from tracecompile.layers import Jacobian, Layer, Trace
from tracecompile.passes.insert_input_traces import layer_decay
from tracecompile.passes.insert_rate_inversion import trainable_statics
from tracecompile.program import StepProgram
from tracecompile.runtime.bins import Bins, Clock, SequenceClock, StreamClock
from tracecompile.runtime.horizon import CELLS
from tracecompile.runtime.responses import Responses
from tracecompile.runtime.statistics import TraceBuffer
from tracecompile.runtime.tangents import Changes, Derivatives, Tangents

LayerStep = tuple[tuple[Tensor, ...], tuple[Tensor, ...]]
"""(outputs of a core, its derivatives) in one step."""


@dataclass(frozen=True)
class Moment:
    """What a single step leaves behind, for learning signals that fall on it alone.

    Attributes:
        step: Which one, counted from the beginning.
        index: Its bin.
        values: What the synapses read, and the batch statistics of the normalisations (``<norm>.mean``), by name.
        changes: By layer, how its outputs answer to what acted since the beginning.
        first: By layer, the oldest bin that ``changes`` still has.
        derivatives: By layer, the Jacobian of the core.
    """

    step: int
    index: int
    values: Mapping[str, Tensor]
    changes: Mapping[str, Changes]
    first: Mapping[str, int]
    derivatives: Mapping[str, Derivatives]


class Record:
    """Statistics of the steps since the sequence or the window began.

    Attributes:
        clock: Which bin each step falls into.
        moment: The last step; None before the first, and after ``load``.
    """

    def __init__(
        self,
        program: StepProgram,
        clock: Clock,
        statics: Mapping[str, Tensor],
        initial: Sequence[Tensor],
    ) -> None:
        """Opens a record.

        Args:
            program: After all passes.
            clock: Of a sequence or a stream.
            statics: Static values by name; those that require grad get gradients.
            initial: Initial states in the order of the carries; those that require grad get gradients.
        """
        self.program, self.clock = program, clock
        self.moment: Moment | None = None
        self.traces = {(t.value, t.decay): TraceBuffer(t, clock.capacity) for t in program.traces}
        single = clock.capacity == 1 and program.settings.decay is None
        self.cells = fine_clock(clock) if single else None
        """Finer time for the mean responses, which a single bin needs for its finite-horizon factor."""
        for layer in program.layers:
            for trace in norm_traces(layer, layer_decay(program, layer)):
                self.traces[trace.value, trace.decay] = TraceBuffer(trace, clock.capacity)
        wanted = trainable_statics(program)
        trainable = [name for name, value in statics.items() if name in wanted and value.requires_grad]
        states = {carry.placeholder: value for carry, value in zip(program.carries, initial, strict=True)}
        self.responses: dict[str, Responses] = {}
        for layer in program.layers:
            if isinstance(layer.response, Jacobian):
                parameters = [name for name in layer.core_statics if name in trainable]
                learned = [name for name in layer.states if states[name].requires_grad]
                tangents = Tangents(layer, parameters, learned, clock.capacity)
                tangents.begin(states)
                self.responses[layer.name] = Responses(tangents, clock.capacity, layer_decay(program, layer))
        positions = {carry.placeholder: position for position, carry in enumerate(program.carries)}
        self._states_of = {layer.name: [positions[state] for state in layer.states] for layer in program.layers}

    def add(
        self,
        states: Sequence[Tensor],
        traced: Sequence[Tensor],
        of_layers: Sequence[LayerStep],
        norms: Sequence[tuple[Tensor, Tensor]],
    ) -> None:
        """Adds one step, as the traced step returns it.

        Args:
            states: Next states, in the order of the carries.
            traced: Values of the traces.
            of_layers: Per layer (outputs of the core, its derivatives).
            norms: Per batch normalisation (mean, variance) of its input.
        """
        if self.clock.must_merge():
            self._merge()
        index = self.clock.tick()
        cell = self._tick_cells()
        statistics = [value for pair in norms for value in pair]
        values = dict(zip(self.traces, [*traced, *statistics], strict=True))
        for key, value in values.items():
            self.traces[key].add(value, index)
        changes, derivatives = {}, {}
        for layer, (outputs, entries) in zip(self.program.layers, of_layers, strict=True):
            if isinstance(layer.response, Jacobian):
                rows = rows_of(layer.response, entries)
                like = dict(zip(layer.outputs, outputs, strict=True))
                like |= {f"next:{i}": states[position] for i, position in enumerate(self._states_of[layer.name])}
                responses = self.responses[layer.name]
                change = responses.tangents.advance(rows, index, like)
                responses.add(change, index)
                if cell is not None:
                    responses.note_profiles(change, rows, cell, CELLS)
                changes[layer.name], derivatives[layer.name] = change, rows
        first = {name: responses.tangents.first for name, responses in self.responses.items()}
        by_name = {name: value for (name, _), value in values.items()}
        self.moment = Moment(self.clock.steps - 1, index, by_name, changes, first, derivatives)

    def let_go(self) -> None:
        """Copies what the last step read out of the sequences that it is a slice of, so that those are not kept."""
        if self.moment is not None:
            values = {name: _own(value) for name, value in self.moment.values.items()}
            self.moment = replace(self.moment, values=values)

    def _merge(self) -> None:
        self.clock.merge()
        for trace in self.traces.values():
            trace.merge()
        for responses in self.responses.values():
            responses.tangents.merge()
            responses.merge()

    def _tick_cells(self) -> int | None:
        if self.cells is None:
            return None
        if self.cells.must_merge():
            self.cells.merge()
            for responses in self.responses.values():
                responses.merge_profiles()
        return self.cells.tick()

    @property
    def bins(self) -> Bins:
        """The bins of the steps so far."""
        return self.clock.bins


def _own(value: Tensor) -> Tensor:
    return value if value.untyped_storage().nbytes() == value.nbytes else value.clone()


def rows_of(response: Jacobian, entries: Sequence[Tensor]) -> Derivatives:
    """Returns the derivatives of a core by name, from those that the traced step returns."""
    return {key: entries[row] if isinstance(row, int) else row for key, row in response.rows.items()}


def fine_clock(clock: Clock) -> Clock:
    """Returns the clock of the cells in which the mean responses are recorded."""
    if isinstance(clock, StreamClock):
        return StreamClock(CELLS)
    return SequenceClock(Bins.over(clock.bins.edges[-1], CELLS))


def norm_traces(layer: Layer, decay: float | None) -> list[Trace]:
    """Returns the traces of the batch statistics of a layer's normalisations: mean, variance, mean, ..."""
    return [Trace(f"{norm}.{what}", decay, (layer.name,)) for norm in layer.norms for what in ("mean", "variance")]
