"""One stretch of time that is trained as a whole: a sequence, or the steps of a stream since the last backward."""

from __future__ import annotations

import functools
import weakref
from collections.abc import Callable, Iterator, Mapping, Sequence
from dataclasses import dataclass
from typing import Any, Literal

import torch
from torch import Tensor, nn

from tracecompile.analysis.graph_view import StepView
from tracecompile.errors import UnsupportedState
from tracecompile.layers import Source
from tracecompile.program import StepProgram, final_states_read, step_results
from tracecompile.runtime.anchors import AnchorFunction, LatestFunction
from tracecompile.runtime.backward import BackwardPass, Gradients, StandIns
from tracecompile.runtime.bins import Bins, Clock, StreamClock
from tracecompile.runtime.record import Moment, Record
from tracecompile.runtime.signals import Signal, TimedSignal, by_bin, is_uneven, only_last
from tracecompile.runtime.stored import load_record

Inputs = Mapping[str, tuple[Tensor, int]]
"""Sequence inputs by placeholder, each with its time axis."""

Shape = tuple[tuple[int, ...], torch.dtype, torch.device]


@dataclass(frozen=True)
class Port:
    """A value that the user can read.

    Attributes:
        source: The node of the step, and who made it how many steps ago.
        when: "each" where the values of all steps can be told apart, "sum" where only their sum is read, "last" where
            the last one is.
    """

    source: Source
    when: Literal["each", "sum", "last"]


_TIMES: dict[str, Literal["each", "sum", "last"]] = {"stack": "each", "step": "each", "sum": "sum", "last": "last"}


def find_ports(program: StepProgram) -> tuple[Port | None, ...]:
    """Returns the ports of the outputs, then of the final states; None for what no layer makes or nobody reads."""
    view = StepView(program)
    made = {output for layer in program.layers for output in layer.outputs}
    outputs, states = step_results(program.step)
    times = [_TIMES[output.collect] for output in program.outputs]
    wanted = [(node, when, True) for node, when in zip(outputs, times, strict=True)]
    wanted += [(node, "last", used) for node, used in zip(states, final_states_read(program), strict=True)]
    ports: list[Port | None] = []
    for node, when, used in wanted:
        origin, delay = view.origin(node)
        value = node.meta["val"]
        is_port = used and origin.name in made and value.is_floating_point()
        ports.append(Port(Source(node.name, origin.name, delay), when) if is_port else None)
    return tuple(ports)


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
    ) -> None:
        """Opens a window.

        Args:
            program: After all passes.
            clock: Of a sequence or a stream.
            statics: Static values, with their graph.
            stand_ins: The leaves of that graph.
            initial: Initial states.
        """
        self.program = program
        self.statics = statics
        self.stand_ins = stand_ins
        self.initial = tuple(initial)
        self.record = Record(program, clock, statics, initial)
        self.closed = False
        self.rerun: Callable[[], Iterator[Moment]] | None = None
        self.reran = False
        self.residuals: dict[str, float] = {}
        self.unsettled: dict[str, int] = {}
        self._versions: list[tuple[nn.Parameter, int]] = []
        self._anchors: dict[tuple[int, int], Tensor] = {}
        """By (port, generation * K + slot) for a stream, by (port, 0) for a sequence."""
        self._latest: dict[int, Tensor] = {}
        """Learning signals on the latest step of a stream, by port."""

    def load(self, tensors: Mapping[str, Tensor]) -> None:
        """Goes on from what an interrupted window had recorded; nothing where that is empty."""
        if tensors:
            load_record(self.record, tensors)

    def sequence_anchors(
        self, ports: Sequence[Port | None], values: Sequence[Tensor], inputs: Inputs
    ) -> list[Tensor | None]:
        """Makes the anchors of a sequence.

        Args:
            ports: As ``find_ports`` returns them.
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
        self._make(ports, shapes, inputs)
        return [self._anchors.get((index, 0)) for index in range(len(ports))]

    def step_anchors(self, ports: Sequence[Port | None], values: Sequence[Tensor]) -> list[Tensor | None]:
        """Returns for each port the anchor of the step just recorded, of the shape of its value."""
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
            self._make(ports, shapes, {})
        now = clock.generation * clock.capacity + clock.slot
        anchors = [self._anchors.get((index, now)) for index in range(len(ports))]
        if not self._exact_moments():
            return anchors
        this = weakref.ref(self)
        return [
            None if anchor is None else LatestFunction.apply(anchor, this, index, clock.steps)
            for index, anchor in enumerate(anchors)
        ]

    def take_latest(self, port: int, step: int, signal: Tensor) -> bool:
        """Takes the learning signal on a port in a step of a stream, if this is the latest step."""
        if step != self.record.clock.steps or self.record.moment is None:
            return False
        self._latest[port] = self._latest[port] + signal if port in self._latest else signal
        return True

    def _exact_moments(self) -> bool:
        """Tells whether the record answers to signals on single steps."""
        return self.program.settings.rule == "measured" and self.program.settings.decay is None

    def _make(self, ports: Sequence[Port | None], shapes: Mapping[tuple[int, int], Shape], inputs: Inputs) -> None:
        parameters = [p for p in self.program.root.parameters() if p.requires_grad]
        self._versions = [(p, p._version) for p in parameters]
        learned = [state for state in self.initial if state.requires_grad]
        wanted = {name: given for name, given in inputs.items() if given[0].requires_grad}
        self._refuse_unreachable_initial()
        run = functools.partial(self._backward, ports, list(shapes), parameters, wanted)
        made = AnchorFunction.apply(
            run, list(shapes.values()), *parameters, *learned, *(value for value, _ in wanted.values())
        )
        self._anchors = dict(zip(shapes, made, strict=True))

    def _place(self, port: Port, slot: int, signal: Tensor) -> Iterator[Signal | TimedSignal]:
        """Says where in time what one anchor received falls."""
        clock, bins = self.record.clock, self.record.bins
        source, steps = port.source, bins.edges[-1]
        if isinstance(clock, StreamClock):
            generation, made = divmod(slot, clock.capacity)
            yield Signal(source, made >> (clock.generation - generation), signal)
        elif port.when == "sum":
            yield from (Signal(source, index, signal * width) for index, width in enumerate(bins.widths))
        elif port.when == "last" or only_last(signal):
            yield from self._on_last(source, signal if port.when == "last" else signal[-1])
        elif self._exact_moments() and bins.count < steps and is_uneven(signal, bins):
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
            yield from self._on_last(port.source, signal)

    def _on_last(self, source: Source, signal: Tensor) -> Iterator[Signal | TimedSignal]:
        """Places a signal on the value that was read in the last step."""
        bins = self.record.bins
        made = bins.edges[-1] - 1 - source.delay
        if self._exact_moments() and not source.delay and self.record.moment is not None:
            yield TimedSignal(source, made, signal.unsqueeze(0))
        elif made >= 0:
            yield Signal(Source(source.value, source.origin), bins.of(made), signal)

    def _refuse_unreachable_initial(self) -> None:
        held = {state for layer in self.program.layers for state in layer.states}
        for carry, state in zip(self.program.carries, self.initial, strict=True):
            if state.requires_grad and carry.placeholder not in held:
                raise UnsupportedState(
                    f"The initial value of {carry.name} requires a gradient, but it is only a delayed value.",
                    "Detach the initial value of delayed spikes.",
                )

    def _backward(
        self,
        ports: Sequence[Port | None],
        keys: list[tuple[int, int]],
        parameters: list[nn.Parameter],
        inputs: Inputs,
        signals: list[Tensor | None],
    ) -> list[Tensor | None]:
        self.closed = True
        for parameter, version in self._versions:
            if parameter._version != version:
                raise RuntimeError(
                    "A parameter was modified in place between the forward and the backward pass; "
                    "its gradient would be wrong. Call backward before the optimizer's step."
                )
        placed: list[Signal | TimedSignal] = []
        for (index, slot), signal in zip(keys, signals, strict=True):
            port = ports[index]
            if signal is not None and port is not None:
                placed += self._place(port, slot, signal)
        for index, signal in self._latest.items():
            port = ports[index]
            assert port is not None
            placed += self._place_latest(port, signal, placed)
        self._latest = {}
        found = self._solve(placed, set(inputs))
        self.residuals, self.unsettled = found.solver.residuals, found.solver.unsettled
        gradients: list[Tensor | None] = [found.parameters.get(parameter) for parameter in parameters]
        for carry, state in zip(self.program.carries, self.initial, strict=True):
            if state.requires_grad:
                gradient = found.initial.get(carry.placeholder)
                gradients.append(None if gradient is None else gradient.sum_to_size(state.shape).to(state.dtype))
        for name, (value, dim) in inputs.items():
            gradients.append(_over_time(found.inputs.get(name), self.record.bins, value, dim))
        return [g if g is None else g.contiguous() for g in gradients]

    def _solve(self, placed: Sequence[Signal | TimedSignal], wanted: set[str]) -> Gradients:
        timed = [signal for signal in placed if isinstance(signal, TimedSignal)]
        last = self.record.bins.edges[-1] - 1
        self.reran = any(signal.first != last for signal in timed)
        backward = BackwardPass(self.program, self.record, self.statics, self.stand_ins, wanted)
        with torch.no_grad():
            steps = self.rerun() if self.reran and self.rerun is not None else None
            return backward.run([signal for signal in placed if isinstance(signal, Signal)], timed, steps)


def _over_time(rows: list[Tensor | None] | None, bins: Bins, value: Tensor, dim: int) -> Tensor | None:
    """Shares the gradient of each bin's mean input among the steps of the bin."""
    if rows is None:
        return None
    gradient = torch.zeros_like(value)
    for index, (row, width) in enumerate(zip(rows, bins.widths, strict=True)):
        if row is not None:
            gradient.narrow(dim, bins.edges[index], width).add_((row / width).unsqueeze(dim))
    return gradient
