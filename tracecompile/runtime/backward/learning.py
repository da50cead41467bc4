"""From what the anchors of a window received to gradients: places the signals in time and decides on a second pass."""

from __future__ import annotations

from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass
from typing import Any

from torch import Tensor

from tracecompile.analysis.ports import Port
from tracecompile.layers import Source
from tracecompile.program import StepProgram
from tracecompile.rules import rule_of
from tracecompile.runtime.backward.gradients import BackwardPass, Gradients, Moments, StandIns
from tracecompile.runtime.backward.placing import bins_for
from tracecompile.runtime.backward.signals import Signal, TimedSignal, by_bin, is_uneven, only_last
from tracecompile.runtime.bins import SequenceClock, StreamClock
from tracecompile.runtime.record import Record
from tracecompile.runtime.rerun import Rerun


@dataclass(frozen=True)
class Received:
    """The learning signal of one anchor.

    Attributes:
        port: What the anchor was added to.
        slot: Of a stream: generation * K + slot of the bin.
        signal: dL/d(anchor).
    """

    port: Port
    slot: int
    signal: Tensor


class Learning:
    """The backward pass of one window.

    Attributes:
        record: That of the window; after a second pass that one's.
        reran: Whether there was one.
    """

    def __init__(
        self,
        program: StepProgram,
        record: Record,
        statics: Mapping[str, Any],
        stand_ins: StandIns,
        initial: Sequence[Tensor],
        rerun: Rerun | None,
    ) -> None:
        """Prepares the pass.

        Args:
            program: After all passes.
            record: Of the window.
            statics: Static values, with their graph.
            stand_ins: The leaves of that graph.
            initial: Initial states.
            rerun: Runs a sequence once more; None for a stream.
        """
        self.program, self.record = program, record
        self.statics, self.stand_ins, self.initial = statics, stand_ins, initial
        self.rerun = rerun
        self.reran = False

    def run(
        self, received: Sequence[Received], latest: Sequence[tuple[Port, Tensor]], wanted_inputs: set[str]
    ) -> Gradients:
        """Turns learning signals into gradients.

        Args:
            received: Of all anchors.
            latest: Signals on the latest step of a stream, which its anchors have not received.
            wanted_inputs: Placeholders of the inputs whose gradient is wanted.
        """
        last = self.record.moment
        if self.rerun is not None and last is not None and self._is_unresolved(received):
            self.reran = True
            apart = [(given.port.source, given.signal) for given in received if _is_apart(given.port)]
            timed = [TimedSignal(source, -source.delay, signal) for source, signal in apart]
            bins = bins_for(self.program, last, timed, self.record.bins)
            self.record = Record(self.program, SequenceClock(bins), self.statics, self.initial)
            # The second pass fills it.
        placed = [signal for given in received for signal in self._place(given)]
        for port, signal in latest:
            placed += self._place_latest(port, signal, placed)
        binned = [signal for signal in placed if isinstance(signal, Signal)]
        single = [signal for signal in placed if isinstance(signal, TimedSignal)]
        moments = Moments(single, last, self.rerun if self.reran else None) if last is not None else None
        backward = BackwardPass(self.program, self.record, self.statics, self.stand_ins, wanted_inputs)
        return backward.run(binned, moments)

    def _is_unresolved(self, received: Sequence[Received]) -> bool:
        """Tells whether there are signals that the bins of the first pass do not resolve."""
        bins = self.record.bins
        if not takes_moments(self.program) or bins.count == bins.edges[-1]:
            return False
        apart = [given.signal for given in received if _is_apart(given.port) and not only_last(given.signal)]
        return any(is_uneven(signal, bins) for signal in apart)

    def _place(self, given: Received) -> Iterator[Signal | TimedSignal]:
        """Says where in time what one anchor received falls."""
        clock, bins = self.record.clock, self.record.bins
        source, signal = given.port.source, given.signal
        if isinstance(clock, StreamClock):
            generation, made = divmod(given.slot, clock.capacity)
            yield Signal(source, made >> (clock.generation - generation), signal)
        elif given.port.when == "sum":
            yield from (Signal(source, index, signal * width) for index, width in enumerate(bins.widths))
        elif given.port.when == "last" or only_last(signal):
            yield from self._on_last(given.port, signal if given.port.when == "last" else signal[-1])
        elif self.reran and not given.port.direct:
            yield TimedSignal(source, -source.delay, signal)
        else:
            yield from by_bin(source, signal, bins)

    def _place_latest(
        self, port: Port, signal: Tensor, others: Sequence[Signal | TimedSignal]
    ) -> Iterator[Signal | TimedSignal]:
        """Places a signal on the latest step of a stream: with its bin, if other steps of the bin have one too."""
        last = self.record.bins.count - 1
        in_bin = [given for given in others if isinstance(given, Signal) and given.index == last]
        if any(given.source == port.source and bool(given.value.any()) for given in in_bin):
            yield Signal(port.source, last, signal)
        else:
            yield from self._on_last(port, signal)

    def _on_last(self, port: Port, signal: Tensor) -> Iterator[Signal | TimedSignal]:
        """Places a signal on the value that was read in the last step."""
        source, bins = port.source, self.record.bins
        made = bins.edges[-1] - 1 - source.delay
        if takes_moments(self.program) and not source.delay and not port.direct:
            yield TimedSignal(source, made, signal.unsqueeze(0))
        elif made >= 0:
            yield Signal(Source(source.value, source.origin), bins.of(made), signal)


def _is_apart(port: Port) -> bool:
    """Tells whether signals on single steps of a port have to be resolved in time."""
    return port.when == "each" and not port.direct


def takes_moments(program: StepProgram) -> bool:
    """Tells whether what is recorded answers to signals on single steps."""
    return rule_of(program.settings).resolves_steps(program.settings)
