"""The record of one sequence (or of one window of a stream): statistics going in, gradients coming out."""

from __future__ import annotations

from collections.abc import Mapping, Sequence

import torch
from torch import Tensor

from tracecompile.layers import Jacobian, Layer, Trace
from tracecompile.passes.insert_input_traces import layer_decay
from tracecompile.passes.insert_rate_inversion import trainable_statics
from tracecompile.program import StepProgram
from tracecompile.runtime.bins import Bins, Clock, SequenceClock, StreamClock
from tracecompile.runtime.horizon import CELLS
from tracecompile.runtime.statistics import Responses, TraceBuffer

LayerStep = tuple[tuple[Tensor, ...], tuple[Tensor, ...]]
"""(outputs of a core, its derivatives) in one step."""


class Record:
    """Statistics of the steps since the sequence or the window began.

    Attributes:
        clock: Which bin each step falls into.
    """

    def __init__(
        self, program: StepProgram, clock: Clock, statics: Mapping[str, Tensor], initial: Sequence[Tensor]
    ) -> None:
        """Opens a record.

        Args:
            program: After all passes.
            clock: Of a sequence or a stream.
            statics: Static values by name; those that require grad get gradients.
            initial: Initial states in the order of the carries; those that require grad get gradients.
        """
        self.program, self.clock = program, clock
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
                responses = Responses(layer, parameters, learned, clock.capacity, layer_decay(program, layer))
                responses.begin(states)
                self.responses[layer.name] = responses
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
            self.clock.merge()
            for trace in self.traces.values():
                trace.merge()
            for responses in self.responses.values():
                responses.merge()
        index = self.clock.tick()
        profile = self._tick_cells()
        statistics = [value for pair in norms for value in pair]
        for buffer, value in zip(self.traces.values(), [*traced, *statistics], strict=True):
            buffer.add(value, index)
        for layer, (outputs, entries) in zip(self.program.layers, of_layers, strict=True):
            if isinstance(layer.response, Jacobian):
                rows = {k: entries[v] if isinstance(v, int) else v for k, v in layer.response.rows.items()}
                like = dict(zip(layer.outputs, outputs, strict=True))
                like |= {f"next:{i}": states[position] for i, position in enumerate(self._states_of[layer.name])}
                self.responses[layer.name].add(rows, index, like, profile)

    def _tick_cells(self) -> tuple[int, int] | None:
        if self.cells is None:
            return None
        if self.cells.must_merge():
            self.cells.merge()
            for responses in self.responses.values():
                responses.merge_profiles()
        # Always as many cells, so that what is held does not depend on the number of steps.
        return self.cells.tick(), CELLS

    @property
    def bins(self) -> Bins:
        """The bins of the steps so far."""
        return self.clock.bins

    def tensors(self) -> dict[str, Tensor]:
        """Returns everything that was recorded, by a name."""
        found = {
            "steps": torch.tensor(self.clock.steps),
            "generation": torch.tensor(getattr(self.clock, "generation", 0)),
            "cell_generation": torch.tensor(getattr(self.cells, "generation", 0)),
        }
        for (value, decay), trace in self.traces.items():
            found[f"trace|{value}|{decay}|weights"] = torch.tensor(trace.weights, dtype=torch.float64)
            if trace.sums is not None:
                found[f"trace|{value}|{decay}|sums"] = trace.sums
        for layer, responses in self.responses.items():
            found[f"response|{layer}|weights"] = torch.tensor(responses.weights, dtype=torch.float64)
            found |= {f"tangent|{layer}|{v}|{s}": t for (v, s), t in responses.tangents.items()}
            found |= {f"response|{layer}|{o}|{v}": t for (o, v), t in responses.sums.items()}
            for (output, variable), profile in responses.profiles.items():
                assert profile.sums is not None
                weights = torch.tensor(profile.weights, dtype=torch.float64)
                found[f"profile|{layer}|{output}|{variable}"] = torch.stack([profile.sums.to(weights), weights])
        return found

    def load(self, tensors: Mapping[str, Tensor]) -> None:
        """Puts back what ``tensors`` returned."""
        self.clock.steps = int(tensors["steps"])
        if isinstance(self.clock, StreamClock):
            self.clock.generation = int(tensors["generation"])
        if isinstance(self.cells, StreamClock):
            self.cells.steps = self.clock.steps
            self.cells.generation = int(tensors["cell_generation"])
        for (value, decay), trace in self.traces.items():
            trace.weights = tensors[f"trace|{value}|{decay}|weights"].tolist()
            trace.sums = _cloned(tensors.get(f"trace|{value}|{decay}|sums"))
        for layer, responses in self.responses.items():
            responses.weights = tensors[f"response|{layer}|weights"].tolist()
            responses.tangents, responses.sums, responses.profiles = {}, {}, {}
            for key, tensor in tensors.items():
                kind, *parts = key.split("|")
                if len(parts) == 3 and parts[0] == layer:
                    responses.load(kind, (parts[1], parts[2]), tensor)


def fine_clock(clock: Clock) -> Clock:
    """Returns the clock of the cells in which the mean responses are recorded."""
    if isinstance(clock, StreamClock):
        return StreamClock(CELLS)
    return SequenceClock(Bins.over(clock.bins.edges[-1], CELLS))


def norm_traces(layer: Layer, decay: float | None) -> list[Trace]:
    """Returns the traces of the batch statistics of a layer's normalisations: mean, variance, mean, ..."""
    return [Trace(f"{norm}.{what}", decay, (layer.name,)) for norm in layer.norms for what in ("mean", "variance")]


def _cloned(tensor: Tensor | None) -> Tensor | None:
    return None if tensor is None else tensor.clone()
