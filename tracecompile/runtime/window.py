"""One stretch of time that is trained as a whole: a sequence, or the steps of a stream since the last backward."""

from __future__ import annotations

import functools
import weakref
from collections.abc import Mapping, Sequence
from typing import Any

import torch
from torch import Tensor

from tracecompile.analysis.ports import Port
from tracecompile.errors import UnsupportedState
from tracecompile.program import StepProgram
from tracecompile.runtime.backward.anchors import AnchorFunction, LatestFunction
from tracecompile.runtime.backward.given import GivenInputs
from tracecompile.runtime.backward.gradients import StandIns
from tracecompile.runtime.backward.learning import Learning, Received, takes_moments
from tracecompile.runtime.bins import Bins, Clock, StreamClock
from tracecompile.runtime.loop import Loop
from tracecompile.runtime.parameters import HeldParameters
from tracecompile.runtime.record import Record
from tracecompile.runtime.rerun import Rerun
from tracecompile.runtime.stored import load_record, record_tensors

Inputs = Mapping[str, tuple[Tensor, int]]
"""Sequence inputs by placeholder, each with its time axis."""

Shape = tuple[tuple[int, ...], torch.dtype, torch.device]


MOST_MERGES = 40
"""How often the bins of a stream may merge: its length is below K times two to this power."""


class Window:
    """A record that is open, and the anchors through which its learning signals will come.

    Attributes:
        record: What was recorded so far.
        closed: True once backward has run: the next step opens another window.
        rerun: Runs a sequence once more, for learning signals that fall on single steps; None for a stream.
        reran: Whether backward did so.
        residuals, unsettled: Of the recurrent blocks, after backward; see Solver.
    """

    def __init__(
        self,
        program: StepProgram,
        clock: Clock,
        statics: Mapping[str, Any],
        stand_ins: StandIns,
        initial: Sequence[Tensor],
        invariants: Mapping[str, Any],
    ) -> None:
        """Opens a window.

        Args:
            program: After all passes.
            clock: Of a sequence or a stream.
            statics: Static values, with their graph.
            stand_ins: The leaves of that graph.
            initial: Initial states.
            invariants: Arguments that do not change over time, by name, with the graph that they come with.
        """
        self.program = program
        self.statics = statics
        self.stand_ins = stand_ins
        self.initial = tuple(initial)
        self.invariants = {
            name: value for name, value in invariants.items() if isinstance(value, Tensor) and value.requires_grad
        }
        self.given = GivenInputs()
        self._sequence = not isinstance(clock, StreamClock)
        self.record = Record(program, clock, statics, initial)
        self.loop: Loop | None = None
        """What fills the record, until all is in it."""
        self.closed = False
        self.rerun: Rerun | None = None
        self.reran = False
        self.residuals: dict[str, float] = {}
        self.unsettled: dict[str, int] = {}
        self._held = HeldParameters(program.root)
        self._versions: list[tuple[Tensor, int]] = []
        self._anchors: dict[tuple[int, int], Tensor] = {}
        """Of a stream, by (port, generation * K + slot)."""
        self._latest: dict[int, Tensor] = {}
        """Learning signals on the latest step of a stream, by port."""

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
            (index, 0): ((steps, *value.shape) if port.when == "each" else value.shape, value.dtype, value.device)
            for index, (port, value) in enumerate(zip(ports, values, strict=True))
            if port is not None
        }
        anchors = self._make(ports, shapes, inputs)
        return [anchors.get((index, 0)) for index in range(len(ports))]

    def step_anchors(
        self, ports: Sequence[Port | None], values: Sequence[Tensor], wanted: Sequence[bool]
    ) -> list[Tensor | None]:
        """Returns for each port the anchor of the step just recorded, of the shape of its value, where it is wanted."""
        clock = self.record.clock
        assert isinstance(clock, StreamClock)
        if not self._anchors:
            used = range(clock.generation, MOST_MERGES) if clock.capacity > 1 else range(1)
            slots = [g * clock.capacity + slot for g in used for slot in range(clock.capacity)]
            shapes = {
                (index, slot): (tuple(value.shape), value.dtype, value.device)
                for index, (port, value) in enumerate(zip(ports, values, strict=True))
                if port is not None
                for slot in slots
            }
            self._anchors = self._make(ports, shapes, {})
        now = clock.generation * clock.capacity + clock.slot
        anchors = [self._anchors.get((index, now)) if wanted[index] else None for index in range(len(ports))]
        if not takes_moments(self.program):
            return anchors
        taker = weakref.WeakMethod(self.take_latest)
        return [
            None if anchor is None else LatestFunction.apply(anchor, taker, index, clock.steps)
            for index, anchor in enumerate(anchors)
        ]

    def take_latest(self, port: int, step: int, signal: Tensor) -> bool:
        """Takes the learning signal on a port in a step of a stream, if this is the latest step."""
        if step != self.record.clock.steps or self.loop is None or self.loop.last is None:
            return False
        self._latest[port] = self._latest[port] + signal if port in self._latest else signal
        return True

    def close(self) -> None:
        """Ends the window for further steps; backward through what it has given remains possible.

        The anchors lead back here through their graph, so that whoever keeps both keeps them for ever.
        """
        self.closed = True
        self._anchors = {}

    def _make(
        self, ports: Sequence[Port | None], shapes: Mapping[tuple[int, int], Shape], inputs: Inputs
    ) -> dict[tuple[int, int], Tensor]:
        known = dict.fromkeys((*self.program.root.parameters(), *self.stand_ins))
        parameters = [p for p in known if p.requires_grad]
        self._versions = [(p, p._version) for p in parameters]
        learned = [state for state in self.initial if state.requires_grad]
        wanted = {name: given for name, given in inputs.items() if given[0].requires_grad}
        self._refuse_unreachable_initial()
        # Backward asks for their shape only: what the prologue has computed is not kept.
        shaped = {name: (value.new_empty(()).expand(value.shape), dim) for name, (value, dim) in wanted.items()}
        run = functools.partial(self._backward, ports, list(shapes), parameters, shaped)
        made = AnchorFunction.apply(
            run,
            list(shapes.values()),
            *parameters,
            *learned,
            *self.invariants.values(),
            *(value for value, _ in wanted.values()),
            *([] if self._sequence else [self.given.end]),
        )
        return dict(zip(shapes, made, strict=True))

    def _refuse_unreachable_initial(self) -> None:
        held = {state for layer in self.program.layers for state in layer.states}
        output = next(node for node in reversed(self.program.prologue.graph.nodes) if node.op == "output")
        for carry, state, node in zip(self.program.carries, self.initial, output.args[0][2], strict=True):
            if state.requires_grad and carry.placeholder not in held:
                raise UnsupportedState(
                    f"The initial value of {carry.name} requires a gradient, but no neuron keeps it: the step before "
                    "reaches this one through a synapse only.",
                    "Detach the initial value, or let the neuron add up its state by elementwise operations.",
                    node.meta.get("where"),
                )

    def _backward(
        self,
        ports: Sequence[Port | None],
        keys: list[tuple[int, int]],
        parameters: list[Tensor],
        inputs: Inputs,
        signals: list[Tensor | None],
    ) -> list[Tensor | None]:
        self.close()
        for parameter, version in self._versions:
            if parameter._version != version:
                raise RuntimeError(
                    "A parameter was modified in place between the forward and the backward pass; "
                    "its gradient would be wrong. Call backward before the optimizer's step."
                )
        received = [
            Received(port, slot, signal)
            for (index, slot), signal in zip(keys, signals, strict=True)
            if signal is not None and (port := ports[index]) is not None
        ]
        with torch.no_grad():
            self.settle()
        latest = [(port, signal) for index, signal in self._latest.items() if (port := ports[index]) is not None]
        self._latest = {}
        leaves = self.stand_ins | {value: value for value in self.invariants.values()}
        learning = Learning(self.program, self.record, self.statics, leaves, self.initial, self.rerun)
        with torch.no_grad(), self._held.put_back():
            found = learning.run(received, latest, {*inputs, *self.given.names})
        self.record, self.reran, self.rerun = learning.record, learning.reran, None
        self.residuals, self.unsettled = found.solver.residuals, found.solver.unsettled
        gradients = [_of_type(found.parameters.get(parameter), parameter) for parameter in parameters]
        for carry, state in zip(self.program.carries, self.initial, strict=True):
            if state.requires_grad:
                gradient = found.initial.get(carry.placeholder)
                gradients.append(None if gradient is None else gradient.sum_to_size(state.shape).to(state.dtype))
        gradients += [_of_type(found.parameters.get(value), value) for value in self.invariants.values()]
        self.given.pass_on(found.inputs, self.record.bins)
        for name, (value, dim) in inputs.items():
            gradients.append(_over_time(found.inputs.get(name), self.record.bins, value, dim))
        if not self._sequence:
            gradients.append(None)
        return [g if g is None else g.contiguous() for g in gradients]


def _of_type(gradient: Tensor | None, value: Tensor) -> Tensor | None:
    return None if gradient is None else gradient.to(value.dtype)


def _over_time(rows: list[Tensor | None] | None, bins: Bins, value: Tensor, dim: int) -> Tensor | None:
    """Shares the gradient of each bin's mean input among the steps of the bin."""
    if rows is None:
        return None
    gradient = torch.zeros_like(value)
    for index, (row, width) in enumerate(zip(rows, bins.widths, strict=True)):
        if row is not None:
            gradient.narrow(dim, bins.edges[index], width).add_((row / width).unsqueeze(dim))
    return gradient
