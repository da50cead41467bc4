"""One stretch of time that is trained as a whole: a sequence, or the steps of a stream since the last backward."""

from __future__ import annotations

import functools
import weakref
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import Any

from torch import Tensor

from tracecompile.analysis.ports import Port
from tracecompile.program import StepProgram
from tracecompile.runtime.backward.anchors import LATEST, Inbox, Place, Shape, StepFunction, anchored
from tracecompile.runtime.backward.given import GivenInputs
from tracecompile.runtime.backward.gradients import StandIns
from tracecompile.runtime.backward.learning import Learning, Received, takes_moments
from tracecompile.runtime.backward.neumann import Settling
from tracecompile.runtime.backward.over_time import of_step, of_type, over_time
from tracecompile.runtime.bins import Clock, StreamClock
from tracecompile.runtime.loop import Loop
from tracecompile.runtime.opened import Opened
from tracecompile.runtime.owed import Owed, refuse_owed
from tracecompile.runtime.parameters import learned_arguments
from tracecompile.runtime.recompute.stand_ins import require_unchanged
from tracecompile.runtime.record import Record
from tracecompile.runtime.rerun import Prepared, Rerun
from tracecompile.runtime.stored import load_record, record_tensors
from tracecompile.runtime.turn import Turn
from tracecompile.runtime.unreachable import refuse_unreachable

Inputs = Mapping[str, tuple[Tensor, int]]
"""Sequence inputs by placeholder, each with its time axis."""


@dataclass(frozen=True)
class Kept:
    """What a backward pass starts from, for as long as autograd keeps the graph.

    Attributes:
        record: As the forward pass has filled it.
        rerun: That of the window.
    """

    record: Record
    rerun: Rerun | None


class Window:
    """A record that is open, and the anchors through which its learning signals will come.

    Attributes:
        record: What was recorded so far; after a backward pass what that has used.
        loop: What fills the record, until all is in it.
        closed: True once backward has run: the next step opens another window.
        rerun: Runs a sequence once more, for learning signals that fall on single steps; None for a stream.
        reran: Whether the last backward pass did so.
        settling: How far the recurrent blocks have settled, after backward.
        owed: Steps of a stream that are recorded, and whose outputs were not given yet.
    """

    def __init__(
        self,
        program: StepProgram,
        turn: Turn,
        clock: Clock,
        statics: Mapping[str, Any],
        stand_ins: StandIns,
        start: Prepared,
        opened: Opened,
    ) -> None:
        """Opens a window.

        Args:
            program: After all passes.
            turn: Of the thread that runs the net.
            clock: Of a sequence or a stream.
            statics: Static values, with their graph.
            stand_ins: The leaves of that graph.
            start: What it begins with.
            opened: The model as it is.
        """
        self.program, self.turn = program, turn
        self.statics = statics
        self.stand_ins = stand_ins
        self.initial = start.initial
        self.invariants = learned_arguments(program, start)
        self.given = GivenInputs()
        self._sequence = not isinstance(clock, StreamClock)
        self.record = Record(program, clock, statics, start.initial)
        self.loop: Loop | None = None
        self.closed = self.draws = False
        self.rerun: Rerun | None = None
        self.reran = False
        self.settling = Settling()
        self.owed: Owed | None = None
        self._opened = opened
        self._versions: list[tuple[Tensor, int]] = []
        self._kept: weakref.ref[Kept] | None = None
        self._inbox: Inbox | None = None
        self._root: Tensor | None = None
        """Of a stream, as long as it goes on."""

    def load(self, tensors: Mapping[str, Tensor]) -> None:
        """Goes on from what ``tensors`` of an interrupted window returned; nothing where that is empty."""
        if tensors:
            load_record(self.record, tensors)
            assert self.loop is not None
            self.loop.load(tensors)

    def tensors(self) -> dict[str, Tensor]:
        """Returns everything that was recorded and has accrued, by a name."""
        return record_tensors(self.record) | (self.loop.tensors() if self.loop is not None else {})

    def settle(self) -> None:
        """Leaves all that has accrued in the record."""
        if self.loop is not None:
            self.loop.settle()
            self.loop = None

    def sequence_anchors(
        self, ports: Sequence[Port | None], values: Sequence[Tensor], inputs: Inputs
    ) -> list[Tensor | None]:
        """Makes the anchors of a sequence.

        Args:
            ports: Of the program.
            values: One step's value of each.
            inputs: Sequence inputs by placeholder, with their time axis, whose gradient is wanted if they require grad.

        Returns:
            One per port: (steps, *shape of one step's value) where the steps can be told apart, else of this shape;
            None where there is no port.
        """
        steps = self.record.bins.edges[-1]
        shapes = {
            index: ((steps, *value.shape) if port.when == "each" else tuple(value.shape), value.dtype, value.device)
            for index, (port, value) in enumerate(zip(ports, values, strict=True))
            if port is not None
        }
        _, made = self._make(ports, values, shapes, inputs)
        anchors = dict(zip(shapes, made, strict=True))
        return [anchors.get(index) for index in range(len(ports))]

    def goes_on(self, prepared: Prepared) -> bool:
        """Tells whether a step may be recorded here: the record knows where a state starts afresh."""
        return True

    @property
    def room(self) -> int:
        """How many steps may be recorded together; none once all is in the record."""
        return 0 if self.loop is None else self.loop.room

    def take(self, prepared: Prepared, drawn: Sequence[Tensor], since: int = 0) -> None:
        """Keeps of the inputs of a step what requires a gradient.

        Args:
            prepared: What it has begun with.
            drawn: States of torch's generators before it.
            since: How many steps were recorded after it.
        """
        inputs = zip(self.program.inputs, prepared.inputs, strict=True)
        self.given.take(self.record.clock.steps - 1 - since, {x.name: value for x, value in inputs})

    def places(self, steps: int) -> list[Place]:
        """Returns where learning signals on the latest steps, all of one bin, belong."""
        clock = self.record.clock
        assert isinstance(clock, StreamClock)
        slot = clock.generation * clock.capacity + clock.slot
        return [(slot, clock.steps - since) for since in reversed(range(steps))]

    def step_anchors(
        self, ports: Sequence[Port | None], values: Sequence[Tensor], wanted: Sequence[bool], place: Place
    ) -> list[Tensor | None]:
        """Returns for each port the anchor of a recorded step, of the shape of its value, where it is wanted."""
        if self._root is None or self._inbox is None:
            self._inbox = Inbox(self.record.clock, takes_moments(self.program))
            self._root, _ = self._make(ports, values, {}, {})
        root, inbox = self._root, self._inbox
        return [
            StepFunction.apply(root, inbox, index, *place, value) if learns and port is not None else None
            for index, (port, value, learns) in enumerate(zip(ports, values, wanted, strict=True))
        ]

    def close(self) -> None:
        """Ends the window for further steps; backward through what it has given remains possible.

        The root leads back here through its graph, so that whoever keeps both keeps them for ever.
        """
        self.closed = True
        self._root = None

    def _make(
        self, ports: Sequence[Port | None], values: Sequence[Tensor], shapes: Mapping[int, Shape], inputs: Inputs
    ) -> tuple[Tensor, list[Tensor]]:
        known = dict.fromkeys((*self.program.root.parameters(), *self.stand_ins))
        parameters = [p for p in known if p.requires_grad]
        self._versions = [(p, p._version) for p in parameters]
        learned = [state for state in self.initial if state.requires_grad]
        wanted = {name: given for name, given in inputs.items() if given[0].requires_grad}
        refuse_unreachable(self.program, self.initial)
        # Backward asks for their shape only: what the prologue has computed is not kept.
        shaped = {name: (value.new_empty(()).expand(value.shape), dim) for name, (value, dim) in wanted.items()}
        run = functools.partial(self._backward, ports, list(shapes), parameters, shaped)
        kept = Kept(self.record, self.rerun)
        self._kept, self.rerun = weakref.ref(kept), None
        device = next((value.device for value in values), None)
        leaves = [*parameters, *learned, *self.invariants, *(value for value, _ in wanted.values())]
        leaves += [] if self._sequence else [self.given.end]
        return anchored(run, kept, device, list(shapes.values()), leaves)

    def _backward(
        self,
        ports: Sequence[Port | None],
        keys: Sequence[int],
        parameters: list[Tensor],
        inputs: Inputs,
        signals: list[Tensor | None],
    ) -> list[Tensor | None]:
        refuse_owed(self.owed, "backward")
        self.close()
        require_unchanged(self._versions)
        by_place = {(index, 0): signal for index, signal in zip(keys, signals, strict=True) if signal is not None}
        if self._inbox is not None:
            by_place = self._inbox.take()
        given = [(port, slot, signal) for (index, slot), signal in by_place.items() if (port := ports[index])]
        received = [Received(port, slot, signal) for port, slot, signal in given if slot != LATEST]
        latest = [(port, signal) for port, slot, signal in given if slot == LATEST]
        self.settle()
        kept = None if self._kept is None else self._kept()
        assert kept is not None, "autograd has freed the graph"
        leaves = self.stand_ins | {value: value for value in self.invariants}
        learning = Learning(self.program, kept.record, self.statics, leaves, self.initial, kept.rerun)
        with self.turn, self._opened.put_back():
            found = learning.run(received, latest, {*inputs, *self.given.names})
        self.record, self.reran = learning.record, learning.reran
        self.settling = found.solver.settling
        gradients = [of_type(found.parameters.get(parameter), parameter) for parameter in parameters]
        for carry, state in zip(self.program.carries, self.initial, strict=True):
            if state.requires_grad:
                gradient = found.initial.get(carry.placeholder)
                gradients.append(None if gradient is None else gradient.sum_to_size(state.shape).to(state.dtype))
        gradients += [of_type(found.parameters.get(value), value) for value in self.invariants]
        self.given.pass_on(functools.partial(of_step, found.inputs, self.record.bins))
        for name, (value, dim) in inputs.items():
            gradients.append(over_time(found.inputs.get(name), self.record.bins, value, dim))
        if not self._sequence:
            gradients.append(None)
        return [g if g is None else g.contiguous() for g in gradients]
