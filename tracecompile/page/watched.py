"""What an input shows of a converted network: gradients beside the reference, spikes over time, memory."""

from __future__ import annotations

import copy
from collections.abc import Sequence
from dataclasses import dataclass, field
from typing import Any

import torch
from torch import Tensor, nn
from torch.utils import _pytree as pytree

from tracecompile.diagnostics.activity import Spikes
from tracecompile.diagnostics.check import projection_loss
from tracecompile.diagnostics.fidelity import call_or_loop, compared
from tracecompile.diagnostics.held import count_held
from tracecompile.diagnostics.reference import copy_of, reference_of
from tracecompile.errors import ConversionError
from tracecompile.program import StepProgram
from tracecompile.rules import rule_of
from tracecompile.runtime.module import TracedModule, session_of
from tracecompile.settings import settings_of

REPEATED = 60
"""How often the input of a step model is shown."""
PARTS = 60
"""Parts of the sequence whose rates are shown, at most."""
NEURONS = 7
"""Neurons whose spikes are drawn."""
DRAWN = 48
"""Steps of which they are drawn, at most."""
NO_INPUT = "No input was given: nothing was run."


@dataclass(frozen=True)
class Watched:
    """What was seen.

    Attributes:
        steps: Time steps of the input.
        repeated: Whether these are one step, again and again.
        activity: By layer that spikes: its mean rate, the rates over time, some neurons' spikes.
        silent: Why there is no activity; "" where there is.
        fidelity: The comparison of the gradients, as plain values.
        uncompared: Why there is none; "" where there is.
        measured: Bytes per sample that a training step holds between forward and backward, at that many steps.
    """

    steps: int = 0
    repeated: bool = False
    activity: dict[str, dict[str, Any]] = field(default_factory=dict)
    silent: str = ""
    fidelity: dict[str, Any] | None = None
    uncompared: str = ""
    measured: dict[str, int] | None = None


class _Watch(Spikes):
    """Counts spikes by layer and step, and keeps those of some neurons of the first sample."""

    def __init__(self, program: StepProgram) -> None:
        super().__init__(program)
        self.rates: dict[str, list[float]] = {name: [] for name in self.sent}
        self.drawn: dict[str, list[list[int]]] = {name: [] for name in self.sent}

    def add(self, given: Sequence[Any]) -> None:
        """Counts a step."""
        before = {name: (self.sums[name], self.fired[name]) for name in self.sums}
        super().add(given)
        for name, total in self.sums.items():
            old, fired = before.get(name, (torch.zeros_like(total), torch.zeros_like(total)))
            self.rates[name].append(float((total - old).mean()))
            if self.steps <= DRAWN:
                now = (self.fired[name] - fired)[0].flatten() if total.ndim > 1 else self.fired[name] - fired
                self.drawn[name].append([int(each) for each in now[_spread(now.numel())]])


def _spread(count: int) -> list[int]:
    """Returns the numbers of some neurons, from the first to the last."""
    shown = min(NEURONS, count)
    return [place * count // shown for place in range(shown)]


def watched(net: TracedModule, inputs: Any) -> Watched:
    """Looks at a converted network on an input: on copies, so that it stays as it is."""
    if inputs is None:
        return Watched(silent=NO_INPUT, uncompared=NO_INPUT)
    program = net.program
    if program.explicit_states:
        why = "The model takes its states as arguments: which input comes after which is known to its caller alone."
        return Watched(silent=why, uncompared=why)
    sequence: Any = inputs if program.kind == "sequence" else [inputs] * REPEATED
    other = copy.deepcopy(net)
    fidelity, uncompared = _fidelity(other, sequence)
    activity, silent, steps = _activity(net, sequence)
    measured = _measured(other, sequence) if fidelity is not None and fidelity["reference"] == "bptt" else None
    repeated = program.kind == "step"
    return Watched(steps, repeated, activity, silent, fidelity, uncompared, measured)


def _fidelity(net: TracedModule, sequence: Any) -> tuple[dict[str, Any] | None, str]:
    try:
        reference = reference_of(net.source, net, sequence, projection_loss, call_or_loop)
        found = compared(reference, net.source, net, sequence, projection_loss, call_or_loop)
    except ConversionError as refusal:
        return None, f"Gradients were not compared: {refusal.explanation}"
    return found.to_dict(), ""


def _measured(net: TracedModule, sequence: Any) -> dict[str, int]:
    sizes = [leaf.shape[0] for leaf in pytree.tree_leaves(sequence) if isinstance(leaf, Tensor) and leaf.ndim]
    axis = net.program.time[0]
    first = next((leaf for leaf in pytree.tree_leaves(sequence) if isinstance(leaf, Tensor) and leaf.ndim), None)
    batch = sizes[0] if sizes else 1
    if net.program.kind == "sequence" and first is not None and first.ndim > 1 and axis is not None:
        batch = first.shape[1 if axis == 0 else 0]
    found = {}
    for name, module in (("through_time", copy_of(net.source)), ("converted", net)):
        net.reset()
        found[name] = -(-_held(module, sequence) // max(batch, 1))
    return found


def _held(module: nn.Module, sequence: Any) -> int:
    with torch.random.fork_rng(), torch.enable_grad():
        return count_held(lambda: projection_loss(call_or_loop(module, sequence)))


def _activity(net: TracedModule, sequence: Any) -> tuple[dict[str, dict[str, Any]], str, int]:
    """Runs a copy of the network forward; under the measured rule, whose steps can be looked at one by one."""
    if not any(layer.spikes for layer in net.program.layers):
        return {}, "Nothing in this network spikes.", 0
    other = copy.deepcopy(net)
    if not rule_of(net.program.settings).records:
        other = TracedModule(copy_of(net.source), settings_of(rule="measured"), session_of(net).compiler)
    calls = sequence if isinstance(sequence, list) else [sequence]
    try:
        with torch.random.fork_rng(), torch.enable_grad():
            executor, _ = session_of(other).prepared_for(calls[0], {})
            watch = _Watch(executor.program)
            executor.observer = watch.add
            for call in calls:
                other(*call)
    except ConversionError as refusal:
        return {}, f"The spikes were not counted: {refusal.explanation}", 0
    if not watch.steps:
        return {}, "The spikes were not counted: no parameter is trained, so that no step was recorded.", 0
    found = {name: _of_layer(watch, name) for name in watch.sums}
    return found, "", watch.steps


def _of_layer(watch: _Watch, name: str) -> dict[str, Any]:
    rates = watch.rates[name]
    width = -(-len(rates) // PARTS)
    parts = [rates[start : start + width] for start in range(0, len(rates), width)]
    return {
        "rate": watch.rate(name),
        "silent": watch.share(name, lambda rate: rate == 0),
        "steps_per_part": width,
        "over_time": [sum(part) / len(part) for part in parts],
        "spikes": [list(neuron) for neuron in zip(*watch.drawn[name], strict=True)],
    }
