"""Traces of one model on its example at lengths of one's choice."""

from __future__ import annotations

from typing import Any

from torch import nn
from torch.utils import _pytree as pytree

from tracecompile.capture.copying.copies import plain_attributes, share_parameters
from tracecompile.capture.copying.statistics import find_statistics, with_statistics
from tracecompile.capture.loops.histories import forward_histories
from tracecompile.capture.loops.lengths import TimeSource
from tracecompile.capture.loops.nesting import separate_loops
from tracecompile.capture.loops.places import place_key, visit_counts
from tracecompile.capture.loops.resizing import resized
from tracecompile.capture.signature import leaf_names
from tracecompile.capture.steps.leftovers import shape_by_input
from tracecompile.capture.tracing.tape import Tape
from tracecompile.capture.tracing.trace_errors import ModelFailure, TooManySteps
from tracecompile.capture.tracing.tracer import Recorder, settle
from tracecompile.capture.tracing.unpacking import separate_unpacked
from tracecompile.errors import LengthMatters

SLOWEST = 4
"""Steps of a sequence that are one more step of any loop that goes along it."""
VISITS = 80
"""How often one place may be visited in a time step, on average: a trace that goes on for longer runs along another
axis than it was cut along."""


class Traces:
    """Runs copies of one model on its example, cut or repeated to any length.

    Attributes:
        model: A copy that stands where its library's own reset leaves it.
        source: What says how many steps there are.
        at_length: Whether the program is that of one length alone.
        signature: Of the call.
        endless: Whether a trace was given up because it ran far longer than it was cut: at no length is it another.
    """

    def __init__(
        self,
        model: nn.Module,
        args: tuple[Any, ...],
        kwargs: dict[str, Any],
        source: TimeSource,
        at_length: bool = False,
    ) -> None:
        self.model, self.source, self.at_length = model, source, at_length
        self.args, self.kwargs = args, kwargs
        self.names = leaf_names(model, args, kwargs)
        self.signature = pytree.tree_structure((args, kwargs))
        self.endless = False
        self._raw: dict[int, tuple[nn.Module, Tape] | None] = {}
        self._unsettled: dict[int, list[tuple[Tape, nn.Module]]] = {}
        """By length the traces that were taken, each with the model as it was before."""

    def pair(self, length: int) -> tuple[Tape, Tape] | None:
        """Returns the traces of a length and of one step more; None where there is no loop over so many steps.

        The values of a loop that another takes apart again are handed on directly.
        """
        short, longer = self.raw(length), self.raw(length + 1)
        if short is None or longer is None or max(visit_counts(short).values(), default=0) < 2:
            return None
        if not any(growth_of((short, longer)).values()):
            return short, longer
        self._settle(length)
        self._settle(length + 1)
        separate_unpacked(short, longer)
        separate_unpacked(longer, short)
        growth = growth_of((short, longer))
        separate_loops(short, length, growth)
        separate_loops(longer, length + 1, growth)
        return self._forwarded(length), self._forwarded(length + 1)

    def require_no_earlier_end(self, length: int) -> None:
        """Refuses a loop that goes along a short sequence and ends before a longer one does, such as by ``break``.

        Raises:
            LengthMatters: It goes along a sequence of this length.
        """
        self._require_no_growth(length, 1, "The loop ends before a long sequence does.")

    def require_no_slower_growth(self, length: int) -> None:
        """Refuses a loop that makes a step for several of the sequence, such as ``range(0, T, 2)``.

        Raises:
            LengthMatters: So many more steps of the sequence are one more of the loop.
        """
        self._require_no_growth(length, SLOWEST, "The loop makes one step for several of the sequence.")

    def _require_no_growth(self, length: int, more: int, explanation: str) -> None:
        short, longer = self.raw(length), self.raw(length + more)
        if short is None or longer is None:
            return
        counts = visit_counts(short)
        grown = (key for key, count in visit_counts(longer).items() if count > counts.get(key, count) > 1)
        key = next(grown, None)
        if key is not None:
            where = next(node.meta.get("where") for node in short.graph.nodes if place_key(node) == key)
            raise LengthMatters(explanation, "Loop over every step of a sequence as long as that.", where)

    def raw(self, length: int) -> Tape | None:
        """Returns a trace as it was taken; None where the model cannot take that length."""
        if length not in self._raw:
            self._raw[length] = self._run(length)  # most sources are none: sizes are looked into where one is
        found = self._raw[length]
        return None if found is None else found[1]

    def _run(self, length: int) -> tuple[nn.Module, Tape] | None:
        try:
            copy = share_parameters(self.model)
            args, kwargs = resized(self.args, self.kwargs, self.source, length)
            before = plain_attributes(copy)
            tape = self._traced(copy, length, args, kwargs)
            self._unsettled[length] = [(tape, self.model)]
            statistics = find_statistics(self.model, tape, args, kwargs, self.source.axis)
            if tape.written or plain_attributes(copy) != before:
                warm = share_parameters(copy)
                again = self._traced(share_parameters(warm), length, args, kwargs)
                self._unsettled[length].append((again, warm))
                tape.again = with_statistics(again, statistics)
            return copy, with_statistics(tape, statistics)
        except TooManySteps:
            self.endless = True
            return None
        except ModelFailure:
            return None

    def _traced(self, copy: nn.Module, length: int, args: Any, kwargs: Any) -> Tape:
        return Recorder(copy, VISITS * length).run_once(args, kwargs, self.names)

    def _settle(self, length: int) -> None:
        call = resized(self.args, self.kwargs, self.source, length)
        for tape, before in self._unsettled.pop(length):
            fixed = self.source.axis if self.at_length else None
            settle(tape, before, VISITS * length, *call, self.names, fixed=fixed)

    def _forwarded(self, length: int) -> Tape:
        found = self._raw.pop(length)
        assert found is not None
        _, tape = found
        if tape.again is not None:
            forward_histories(shape_by_input(tape.again))
        return forward_histories(shape_by_input(tape))


def growth_of(tapes: tuple[Tape, Tape]) -> dict[Any, int]:
    """Returns how many more visits of each place the second of two traces has."""
    before, after = (visit_counts(tape) for tape in tapes)
    return {key: count - before.get(key, 0) for key, count in after.items()}
