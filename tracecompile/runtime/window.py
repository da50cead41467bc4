"""One stretch of time that is trained as a whole: a sequence, or the steps of a stream since the last backward."""

from __future__ import annotations

import functools
from collections.abc import Mapping, Sequence
from dataclasses import dataclass

import torch
from torch import Tensor, nn

from tracecompile.errors import UnsupportedState
from tracecompile.graph_view import StepView
from tracecompile.layers import Source
from tracecompile.program import StepProgram, final_states_read, step_results
from tracecompile.runtime.anchors import AnchorFunction
from tracecompile.runtime.backward import BackwardPass
from tracecompile.runtime.bins import Bins
from tracecompile.runtime.record import Record


@dataclass(frozen=True)
class Port:
    """A value that the user can read.

    Attributes:
        source: The node of the step, and who made it how many steps ago.
        every_step: False for a final state, which is read after the last step only.
    """

    source: Source
    every_step: bool


def find_ports(program: StepProgram) -> tuple[Port | None, ...]:
    """Returns the ports of the outputs, then of the final states; None for what no layer makes or the user cannot read."""
    view = StepView(program)
    made = {output for layer in program.layers for output in layer.outputs}
    outputs, states = step_results(program.step)
    wanted = [(node, True, True) for node in outputs]
    wanted += [(node, False, used) for node, used in zip(states, final_states_read(program), strict=True)]
    ports: list[Port | None] = []
    for node, every_step, used in wanted:
        origin, delay = view.origin(node)
        value = node.meta["val"]
        is_port = used and origin.name in made and value.is_floating_point()
        ports.append(Port(Source(node.name, origin.name, delay), every_step) if is_port else None)
    return tuple(ports)


class Window:
    """A record that is open, and the anchors through which its learning signals will come.

    Attributes:
        record: What was recorded so far.
        anchors: One per port, (bins, *shape of one step's value); None where there is no port.
        closed: True once backward has run: the next step opens another window.
        residuals: Residuals of the recurrent blocks, after backward.
    """

    def __init__(self, program: StepProgram, bins: Bins, statics: Mapping[str, Tensor], initial: Sequence[Tensor]) -> None:
        """Opens a window."""
        self.program = program
        self.statics = statics
        self.initial = tuple(initial)
        self.record = Record(program, bins, statics, initial)
        self.anchors: list[Tensor | None] = []
        self.closed = False
        self.residuals: dict[str, float] = {}
        self.unsettled: dict[str, int] = {}
        self.versions: list[tuple[nn.Parameter, int]] = []

    def load(self, tensors: Mapping[str, Tensor]) -> None:
        """Goes on from what an interrupted window had recorded; nothing where that is empty."""
        if tensors:
            self.record.load(tensors)

    def anchor(self, ports: Sequence[Port | None], values: Sequence[Tensor], inputs: Mapping[str, tuple[Tensor, int]]) -> None:
        """Makes the anchors.

        Args:
            ports: As ``find_ports`` returns them.
            values: One step's value of each.
            inputs: Sequence inputs by placeholder, with their time axis, whose gradient is wanted if they require grad.
        """
        parameters = [p for p in self.program.root.parameters() if p.requires_grad]
        self.versions = [(p, p._version) for p in parameters]
        learned = [state for state in self.initial if state.requires_grad]
        wanted = {name: given for name, given in inputs.items() if given[0].requires_grad}
        self._refuse_unreachable_initial()
        chosen = [(port, value) for port, value in zip(ports, values, strict=True) if port is not None]
        slots = self.record.bins.count
        shapes = [((slots if port.every_step else 1, *v.shape), v.dtype, v.device) for port, v in chosen]
        run = functools.partial(self._backward, [port for port, _ in chosen], parameters, wanted)
        made = AnchorFunction.apply(run, shapes, *parameters, *learned, *(value for value, _ in wanted.values()))
        remaining = iter(made)
        self.anchors = [None if port is None else next(remaining) for port in ports]

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
        ports: list[Port],
        parameters: list[nn.Parameter],
        inputs: Mapping[str, tuple[Tensor, int]],
        signals: list[Tensor | None],
    ) -> list[Tensor | None]:
        self.closed = True
        self.record.close()
        for parameter, version in self.versions:
            if parameter._version != version:
                raise RuntimeError(
                    "A parameter was modified in place between the forward and the backward pass; its gradient would be wrong. "
                    "Call backward before the optimizer's step."
                )
        last = self.record.bins.count - 1
        rows = []
        for port, signal in zip(ports, signals, strict=True):
            if signal is not None:
                if not port.every_step:
                    padded = signal.new_zeros((last + 1, *signal.shape[1:]))
                    padded[last] = signal[0]
                    signal = padded
                rows.append((port.source, signal))
        backward = BackwardPass(self.program, self.record, self.statics, set(inputs))
        with torch.no_grad():
            found = backward.run(rows)
        self.residuals, self.unsettled = found.solver.residuals, found.solver.unsettled
        gradients: list[Tensor | None] = [found.parameters.get(parameter) for parameter in parameters]
        for carry, state in zip(self.program.carries, self.initial, strict=True):
            if state.requires_grad:
                gradient = found.initial.get(carry.placeholder)
                gradients.append(None if gradient is None else gradient.sum_to_size(state.shape).to(state.dtype))
        for name, (value, dim) in inputs.items():
            gradients.append(_over_time(found.inputs.get(name), self.record.bins, value, dim))
        return [g if g is None else g.contiguous() for g in gradients]


def _over_time(rows: list[Tensor | None] | None, bins: Bins, value: Tensor, dim: int) -> Tensor | None:
    """Shares the gradient of each bin's mean input among the steps of the bin."""
    if rows is None:
        return None
    if dim < 0:
        return rows[0]
    gradient = torch.zeros_like(value)
    for index, (row, width) in enumerate(zip(rows, bins.widths(), strict=True)):
        if row is not None:
            gradient.narrow(dim, bins.start(index), width).add_((row / width).unsqueeze(dim))
    return gradient
