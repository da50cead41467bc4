"""From learning signals on the outputs of a sequence to gradients of its parameters, initial states and inputs."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field

import torch
from torch import Tensor

from tracecompile.analysis.ports import static_names
from tracecompile.layers import Layer, Pair
from tracecompile.program import StepProgram
from tracecompile.rules import Response, Signals, rule_of
from tracecompile.rules.accumulation import accumulator_dtype
from tracecompile.rules.measured.adjoint import KnownCurrents
from tracecompile.rules.measured.horizon import Horizon
from tracecompile.rules.measured.within import HorizonOfBins
from tracecompile.runtime.backward.all_bins import JointGraph, local_graph
from tracecompile.runtime.backward.local import LocalGraph, Point
from tracecompile.runtime.backward.moments import MomentPass
from tracecompile.runtime.backward.signals import Signal, TimedSignal, at_step, of_all_steps
from tracecompile.runtime.backward.solve import Solver
from tracecompile.runtime.record import Moment, Record, read_pairs
from tracecompile.runtime.rerun import Rerun

StandIns = dict[Tensor, Tensor]
"""The leaf that stands for each Parameter, or argument, in the graph of the static values."""


@dataclass
class JunctionResponse:
    """A junction hands on what it receives."""

    responses: None = None
    factors: dict[Pair, Tensor] = field(default_factory=dict)

    def on_currents(self, layer: Layer, signals: Signals, index: int) -> dict[str, Tensor]:
        """See Response."""
        signal = signals[layer.outputs[0]][index]
        return {} if signal is None else dict.fromkeys(layer.currents, signal)

    def parameter_signals(self, layer: Layer, signals: Signals) -> dict[str, Tensor]:
        """See Response."""
        return {}


@dataclass(frozen=True)
class Gradients:
    """What one backward pass found.

    Attributes:
        parameters: Gradients of Parameters.
        initial: Of initial states, by placeholder.
        inputs: Of the mean input per bin, by the input's placeholder.
        solver: Residuals of the recurrent blocks are there.
    """

    parameters: dict[Tensor, Tensor]
    initial: dict[str, Tensor]
    inputs: dict[str, list[Tensor | None]]
    solver: Solver


@dataclass(frozen=True)
class Moments:
    """Learning signals on the values of single steps.

    Attributes:
        signals: The signals.
        last: The last step of the record.
        rerun: Runs all steps of the sequence once more; None if the signals fall on the last step alone.
    """

    signals: Sequence[TimedSignal]
    last: Moment
    rerun: Rerun | None


class BackwardPass:
    """Runs the local graphs of one record."""

    def __init__(
        self,
        program: StepProgram,
        record: Record,
        statics: Mapping[str, Tensor],
        stand_ins: StandIns,
        wanted_inputs: set[str],
    ) -> None:
        """Prepares the pass.

        Args:
            program: After all passes.
            record: Of the sequence.
            statics: Static values with their graph.
            stand_ins: The leaves of that graph.
            wanted_inputs: Placeholders of the inputs whose gradient is wanted.
        """
        self.program, self.record = program, record
        self.statics, self.stand_ins = statics, stand_ins
        self.constant = static_names(program)
        self.low = _half_precisions(program)
        solved = (block for block in program.blocks if block.recurrent)
        self.solved = {program.layers[index].name for block in solved for index in block.layers}
        self.wanted = wanted_inputs | {output for layer in program.layers for output in layer.outputs}

    def run(self, signals: Sequence[Signal], moments: Moments | None = None) -> Gradients:
        """Turns learning signals on what the user read into gradients.

        Args:
            signals: On all values of a bin.
            moments: Those on the values of single steps.
        """
        leaves = {
            name: value.detach().requires_grad_(value.requires_grad) if isinstance(value, Tensor) else value
            for name, value in self.statics.items()
        }
        bins = self.record.bins
        delays = {s.delay for layer in self.program.layers for s in layer.sources} | {s.source.delay for s in signals}
        overlap = {delay: bins.overlap(delay) for delay in delays if delay}
        graphs: dict[str, LocalGraph | JointGraph] = {}
        responses: dict[str, Response] = {}
        solver = Solver(self.program, overlap, bins.count, responses, graphs, self.record.responses)
        given = [signal.value for signal in signals] + [each.values for each in (moments.signals if moments else ())]
        solver.horizon = self._horizon(given[0].device) if given else None
        if moments is not None and moments.signals:
            # First, since a second pass fills the record.
            self._take_moments(solver, leaves, moments)
        for layer in self.program.layers:
            graphs[layer.name] = self._graph(layer, leaves)
            responses[layer.name] = _response(layer, self.record, graphs[layer.name], leaves)
        for signal in signals:
            self._take(solver, signal)
            if solver.horizon is not None:
                solver.horizon.note(signal.source.origin, signal.value, solver.horizon.constant(), signal.index)
        solver.run()
        inputs = {x.name: solver.signals[x.name] for x in self.program.inputs if x.name in solver.signals}
        return Gradients(self._through_statics(solver), solver.initial, inputs, solver)

    def _take(self, solver: Solver, given: Signal) -> None:
        """Takes a signal on all values of a bin, made by a layer or an input, or the same at every step."""
        if given.source.origin in self.constant:
            solver.add_weights({}, {given.source.origin: given.value})
        else:
            solver.add(given.source.origin, given.source.delay, given.index, given.value)

    def _take_moments(self, solver: Solver, statics: Mapping[str, Tensor], moments: Moments) -> None:
        timed, last = moments.signals, moments.last
        steps = MomentPass(self.program, self.record.bins, solver, statics, self.wanted, self._as_read)
        if moments.rerun is None:
            steps.take(last, at_step(timed, last.step))
            return
        known = self._known_currents(timed, last, moments.rerun)
        for moment in moments.rerun.moments(self.record):
            steps.take(moment, at_step(timed, moment.step), known)

    def _known_currents(self, timed: Sequence[TimedSignal], last: Moment, rerun: Rerun) -> KnownCurrents:
        """Pulls the signals through the cores that the user reads, as exactly as the steps are known."""
        known = KnownCurrents()
        given = {
            layer.name: of_all_steps(timed, layer.outputs, self.record.bins.edges[-1])
            for layer in self.program.layers
            if layer.name in self.record.responses
        }
        read = [layer for layer in self.program.layers if given.get(layer.name)]
        varying = [layer for layer in read if layer.response is not None and not layer.response.invariant]
        jacobians = rerun.jacobians(varying) if varying else {}
        for layer in read:
            slopes = jacobians.get(layer.name, [last.derivatives[layer.name]])
            known.add(layer, slopes, given[layer.name])
        return known

    def _horizon(self, device: torch.device) -> Horizon | None:
        """Returns what keeps the time within bins, where it counts; ``device`` is where the signals are."""
        cells, bins = self.record.cells, self.record.bins
        if cells is not None:
            return Horizon(cells.bins.widths, device)
        binned = rule_of(self.program.settings).resolves_steps(self.program.settings)
        return HorizonOfBins(bins.edges, device) if binned and 1 < bins.count < bins.edges[-1] else None

    def _graph(self, layer: Layer, statics: Mapping[str, Tensor]) -> LocalGraph | JointGraph:
        points = [self._points(layer, index) for index in range(self.record.bins.count)]
        wanted = {source.value for source in layer.sources if source.origin in self.wanted}
        return local_graph(self.program, layer, points, statics, wanted, solved=layer.name in self.solved)

    def _points(self, layer: Layer, index: int) -> list[Point]:
        """Returns where a local graph is evaluated in a bin: at the mean input, or at some steps as they were."""
        pairs = read_pairs(layer)
        if layer.sampled:
            found = [[values[pair] for pair in pairs] for _, values in self.record.samples.rows[index].samples()]
        else:
            found = [[self.record.traces[(*pair, layer.decay)].mean(index) for pair in pairs]]
        read = [[self._as_read(name, value) for (name, _), value in zip(pairs, row, strict=True)] for row in found]
        names, count = [source.value for source in layer.sources], len(layer.sources)
        return [Point(dict(zip(names, row[:count], strict=True)), row[count:]) for row in read]

    def _as_read(self, name: str, value: Tensor) -> Tensor:
        """Returns a value in the precision of the model: sums are kept in a higher one, and autocast has lower ones."""
        if not value.is_floating_point():
            return value
        return value.to(self.low.get(name, accumulator_dtype(value.dtype)))

    def _through_statics(self, solver: Solver) -> dict[Tensor, Tensor]:
        """Adds to the synapses' gradients what reaches parameters through static values."""
        found = dict(solver.weights)
        names = [name for name in solver.statics if self.statics[name].requires_grad]
        if names:
            outputs = [self.statics[name] for name in names]
            pulls = [_reduced(solver.statics[name], value) for name, value in zip(names, outputs, strict=True)]
            leaves = {p: leaf for p, leaf in self.stand_ins.items() if leaf.requires_grad}
            # Modules of the static part, if there are any, hold their parameters themselves.
            held = [p for p in self.program.root.parameters() if p.requires_grad and p not in leaves]
            wanted = leaves | {p: p for p in held}
            gradients = torch.autograd.grad(outputs, list(wanted.values()), pulls, retain_graph=True, allow_unused=True)
            for parameter, gradient in zip(wanted, gradients, strict=True):
                if gradient is not None:
                    found[parameter] = found[parameter] + gradient if parameter in found else gradient
        return found


def _response(layer: Layer, record: Record, graph: LocalGraph | JointGraph, statics: Mapping[str, Tensor]) -> Response:
    if layer.response is None:
        return JunctionResponse()
    currents = [dict(zip(layer.currents, values, strict=True)) for values in graph.currents]
    return layer.response.local(layer, record.responses.get(layer.name), currents, statics)


def _reduced(signal: Tensor, value: Tensor) -> Tensor:
    """Sums a signal that is per neuron and sample to the shape of a value that they share."""
    return signal.sum_to_size(value.shape).to(value.dtype)


def _half_precisions(program: StepProgram) -> dict[str, torch.dtype]:
    """Returns the precision of those values of a step that are accumulated in a higher one than the model's, by name.

    Under autocast values are in a lower precision than the parameters: means of these may stay in the higher one.
    """
    half = {value.dtype for value in program.root.parameters() if value.dtype != accumulator_dtype(value.dtype)}
    values = {node.name: node.meta.get("val") for node in program.step.graph.nodes} if half else {}
    return {name: value.dtype for name, value in values.items() if isinstance(value, Tensor) and value.dtype in half}
