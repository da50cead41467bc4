"""How much memory a converted network holds while it trains, known before any step is run."""

from __future__ import annotations

from dataclasses import asdict, dataclass
from math import prod

import torch
from torch import Tensor

from tracecompile.layers import Jacobian, Layer
from tracecompile.passes.insert_rate_inversion import trainable_statics
from tracecompile.program import StepProgram
from tracecompile.runtime.horizon import CELLS
from tracecompile.runtime.statistics import accumulator_dtype

_SUM_AND_WEIGHT = 16
"""Bytes of one cell of a profile."""


@dataclass(frozen=True)
class Footprint:
    """Bytes per sample that are held between two time steps; none of them depends on the number of steps.

    With K bins: a trace has K slots; a state has K tangents per current and one per trained parameter of its core; an
    output has K (K + 1) / 2 responses per current, fewer where old bins fade, and K per parameter.

    Attributes:
        states: The network's own states.
        traces: Sums of what the synapses read.
        tangents: Derivatives of the states.
        responses: Derivatives of the mean outputs, with the widest band.
        profiles: What a single bin keeps of time, for its finite-horizon factors; in all, not per sample.
    """

    states: int = 0
    traces: int = 0
    tangents: int = 0
    responses: int = 0
    profiles: int = 0

    @property
    def total(self) -> int:
        """All that is held per sample."""
        return self.states + self.traces + self.tangents + self.responses

    def __str__(self) -> str:
        parts = ", ".join(f"{name} {_size(value)}" for name, value in asdict(self).items() if name != "profiles")
        return f"at most {_size(self.total)} per sample, whatever the number of steps: {parts}"


def footprint(program: StepProgram) -> Footprint:
    """Returns what a program that has gone through all passes holds per sample.

    Values whose first axis is not the batch (shared states) count as if they belonged to one sample each.
    """
    values = {node.name: node.meta.get("val") for node in program.step.graph.nodes}
    rule = program.settings
    bins = rule.bins if rule.rule == "measured" and rule.decay is None else 1
    batch = _batch(program, values)
    states = sum(_bytes(values[carry.placeholder]) for carry in program.carries)
    traces = tangents = responses = profiles = 0
    if rule.rule != "bptt":
        traces = bins * sum(_bytes(values[trace.value], summed=True) for trace in program.traces)
    trained = trainable_statics(program)
    for layer in program.layers:
        if isinstance(layer.response, Jacobian):
            found = _of_core(layer, layer.response, values, bins, trained)
            tangents, responses, profiles = tangents + found[0], responses + found[1], profiles + found[2]
    if bins > 1 or rule.decay is not None:
        profiles = 0
    states, traces, tangents, responses = (-(-size // batch) for size in (states, traces, tangents, responses))
    return Footprint(states, traces, tangents, responses, profiles)


def _of_core(
    layer: Layer, jacobian: Jacobian, values: dict[str, object], bins: int, trained: frozenset[str]
) -> tuple[int, int, int]:
    """Returns the bytes of a core's tangents, responses and profiles, as they come to be from its Jacobian."""
    tangents = responses = profiles = 0
    parameters = [name for name in layer.core_statics if name in trained]
    for variable in (*layer.currents, *parameters):
        slots = bins if variable in layer.currents else 1
        rows = bins * (bins + 1) // 2 if variable in layer.currents else bins
        reached = _reached_states(layer, jacobian, variable)
        tangents += slots * sum(_bytes(values[state], summed=True) for state in reached)
        for output in layer.outputs:
            if any((output, cause) in jacobian.rows for cause in (variable, *reached)):
                responses += rows * _bytes(values[output], summed=True)
                kept = 1 + ((output, variable) in jacobian.rows)
                profiles += kept * CELLS * _SUM_AND_WEIGHT
    return tangents, responses, profiles


def _reached_states(layer: Layer, jacobian: Jacobian, variable: str) -> list[str]:
    """Returns the states that a variable has an effect on, at once or through other states."""
    reached: list[str] = []
    while True:
        causes = (variable, *reached)
        fresh = [
            state
            for position, state in enumerate(layer.states)
            if state not in reached and any((f"next:{position}", cause) in jacobian.rows for cause in causes)
        ]
        if not fresh:
            return reached
        reached += fresh


def _batch(program: StepProgram, values: dict[str, object]) -> int:
    """Returns the batch size of the example: the first axis of a layer's output."""
    for layer in program.layers:
        value = values.get(layer.outputs[0]) if layer.outputs else None
        if isinstance(value, Tensor) and value.ndim > 1:
            return value.shape[0]
    return 1


def _bytes(value: object, summed: bool = False) -> int:
    if not isinstance(value, Tensor):
        return 0
    dtype = accumulator_dtype(value.dtype) if summed and value.is_floating_point() else value.dtype
    return prod(value.shape) * torch.empty((), dtype=dtype, device="meta").element_size()


def _size(count: int) -> str:
    size = float(count)
    for unit in ("B", "kB", "MB"):
        if size < 1000:
            return f"{size:.3g} {unit}"
        size /= 1000
    return f"{size:.3g} GB"
