"""The record of one sequence (or of one window of a stream): statistics going in, gradients coming out."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import Any

from torch import Tensor

from tracecompile.layers import STATISTICS, Accrual, Layer, Pair
from tracecompile.program import StepProgram
from tracecompile.rules.measured.adjoint import Derivatives
from tracecompile.rules.measured.horizon import CELLS
from tracecompile.rules.measured.responses import Responses
from tracecompile.rules.sums import BinSums
from tracecompile.runtime.bins import Bins, Clock, SequenceClock, StreamClock
from tracecompile.runtime.sampled import Samples


@dataclass(frozen=True)
class Moment:
    """What a single step leaves behind, for learning signals that fall on it alone.

    Attributes:
        step: Which one, counted from the beginning.
        index: Its bin.
        values: What the traces add up of it, by (value, statistic).
        changes: By layer, how its outputs answer to what acted since the beginning.
        first: By layer, the oldest bin that ``changes`` still has.
        derivatives: By layer, the Jacobian of the core.
    """

    step: int
    index: int
    values: Mapping[Pair, Tensor]
    changes: Mapping[str, Mapping[Pair, Tensor]]
    first: Mapping[str, int]
    derivatives: Mapping[str, Derivatives]


class Record:
    """Statistics of the steps since the sequence or the window began, up to the last fold.

    Attributes:
        clock: Which bin each step falls into.
        traces: Sums by (value, statistic, decay).
        responses: By layer.
        moment: The last step, once the window is settled.
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
        self.traces = {key_of(trace): BinSums(trace.decay, clock.capacity) for trace in program.traces_kept}
        self.samples = Samples((pair for layer in program.layers if layer.sampled for pair in read_pairs(layer)), clock)
        single = clock.capacity == 1 and program.settings.decay is None
        self.cells = fine_clock(clock) if single else None
        """Finer time for the mean responses, which a single bin needs for its finite-horizon factor."""
        trainable = [name for name, value in statics.items() if name in program.trainable and value.requires_grad]
        states = {carry.placeholder: value for carry, value in zip(program.carries, initial, strict=True)}
        self.responses: dict[str, Responses] = {}
        for layer in program.layers:
            if layer.response is None:
                continue
            learned = [name for name in layer.states if states[name].requires_grad]
            responses = layer.response.record(layer, trainable, learned, clock.capacity)
            if responses is not None:
                responses.tangents.begin(states)
                self.responses[layer.name] = responses
        self.learns_starts = any(responses.tangents.by_state for responses in self.responses.values())
        """Whether an initial state wants a gradient."""

    def fold(self, accrued: Mapping[Accrual, Tensor], index: int, steps: int) -> None:
        """Takes what has accrued over the latest steps, all of the bin ``index``."""
        sums: dict[str, dict[Pair, Tensor]] = {name: {} for name in self.responses}
        ends: dict[str, dict[Pair, Tensor]] = {name: {} for name in self.responses}
        for accrual, total in accrued.items():
            if accrual.role == "trace":
                self.traces[key_of(accrual)].fold(total, index, steps)
            else:
                (sums if accrual.role == "response" else ends)[accrual.layer][accrual.pair] = total
        for name, responses in self.responses.items():
            responses.fold(index, steps, sums[name], ends[name])

    def merge(self) -> None:
        """Makes room for more steps of a stream: neighbouring bins become one."""
        self.clock.merge()
        for trace in self.traces.values():
            trace.merge()
        self.samples.merge()
        for responses in self.responses.values():
            responses.tangents.merge()
            responses.merge()

    def tick_cells(self, steps: int) -> list[int] | None:
        """Counts steps of the fine clock; returns their cells, None where there are none."""
        if self.cells is None:
            return None
        found = []
        for _ in range(steps):
            if self.cells.must_merge():
                self.cells.merge()
                for responses in self.responses.values():
                    responses.merge_profiles()
            found.append(self.cells.tick())
        return found

    @property
    def bins(self) -> Bins:
        """The bins of the steps so far."""
        return self.clock.bins


Key = tuple[str, str, float | None]


def key_of(trace: Accrual) -> Key:
    """Returns what names a trace in a record: (value, statistic, decay)."""
    return (*trace.pair, trace.decay)


def norm_pairs(layer: Layer) -> list[Pair]:
    """Returns what is traced of a layer's normalisations, in the order in which its local graph takes it."""
    return [(norm, what) for norm in layer.norms for what in STATISTICS]


def read_pairs(layer: Layer) -> list[Pair]:
    """Returns all that is traced for a layer."""
    return [*((source.value, "") for source in layer.sources), *norm_pairs(layer)]


def fine_clock(clock: Clock) -> Clock:
    """Returns the clock of the cells in which the mean responses are recorded."""
    if isinstance(clock, StreamClock):
        return StreamClock(CELLS)
    return SequenceClock(Bins.over(clock.bins.edges[-1], CELLS))


def owned(values: Mapping[Pair, Any]) -> dict[Pair, Any]:
    """Returns values in memory of their own, so that the sequences that they are slices of are not kept."""
    return {pair: value.clone() if _is_part(value) else value for pair, value in values.items()}


def _is_part(value: object) -> bool:
    return isinstance(value, Tensor) and value.untyped_storage().nbytes() != value.nbytes
