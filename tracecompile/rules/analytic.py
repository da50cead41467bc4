"""The analytic rule: the mean output of a neuron from its mean current, by a rate curve.

The constants of the curve (leak, input gain, threshold) are read off the user's own core by evaluating it at a few
states, so they are functions of the user's parameters and carry their gradients. A core that is no leaky neuron is
replayed for a fixed number of steps under its constant mean current.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field
from typing import TYPE_CHECKING, ClassVar, Literal

import torch
from torch import Tensor, fx

from tracecompile.errors import UnsupportedOperation
from tracecompile.layers import Accrual, Layer, Pair
from tracecompile.program import Settings, StepProgram, example_value
from tracecompile.rules.curve_graph import curve_graph, spike_argument
from tracecompile.rules.rates import linear_core, subtractive_rate, zero_reset_rate
from tracecompile.rules.rule import Rule, Signals

if TYPE_CHECKING:
    from tracecompile.rules.measured.responses import Responses

REPLAY_STEPS = 64
"""Steps for which a core without a known curve is replayed."""

Curve = Literal["subtract", "zero", "integrator", "replay"]


class Analytic(Rule):
    """Computes the slopes of every neuron from its rate curve, at its mean current over the whole sequence."""

    name: ClassVar[str] = "analytic"
    records: ClassVar[bool] = True
    draws: ClassVar[bool] = False
    by_neuron: ClassVar[bool] = True

    def core(self, program: StepProgram, layer: Layer, trainable: frozenset[str]) -> RateCurve:
        """See Rule."""
        return rate_curve(program, layer)

    def refuse(self, program: StepProgram) -> None:
        """See Rule: a recurrence without spikes has a curve where it is a leaky integrator."""
        layers = [layer for layer in program.layers if layer.states] or list(program.layers)
        others = [layer for layer in layers if getattr(layer.response, "curve", None) != "integrator"]
        if others and not any(core.spikes for core in program.cores):
            name, made = others[0].name, others[0].outputs
            raise UnsupportedOperation(
                f"Nothing spikes, and {name} is no leaky integrator: the analytic rule knows no curve of its mean "
                "output.",
                'Convert it with rule="measured", which measures the slope, or with rule="exact".',
                next((node.meta.get("where") for node in program.step.graph.nodes if node.name in made), None),
            )

    def has_flat_parts(self) -> bool:
        """See Rule: so have rate curves."""
        return True

    def is_exact(self, bins: int, steps: int) -> bool:
        """See Rule."""
        return False

    def status(self, settings: Settings) -> tuple[Literal["exact", "trace"], str]:
        """See Rule."""
        return "trace", "rate curve at the mean input"

    def notes(self, program: StepProgram) -> list[str]:
        """See Rule."""
        curves = ((layer.name, layer.response) for layer in program.layers)
        replayed = [name for name, curve in curves if isinstance(curve, RateCurve) and curve.curve == "replay"]
        notes = []
        if replayed:
            notes.append(f"No rate curve is known for {', '.join(replayed)}: replayed under their mean current.")
        if any(layer.spikes for layer in program.layers):
            notes.append("The analytic rule does not look at detach: its slopes are those of the rate curves.")
        return notes


@dataclass(frozen=True)
class RateCurve:
    """The local graph of one core under the analytic rule; see CoreRule.

    Attributes:
        layer: The layer.
        curve: Leaky neuron with subtractive reset or reset to zero, leaky integrator, or anything else.
        drive: (currents, states, statics) -> (spike argument, next state); None for "replay" and "integrator".
    """

    layer: Layer
    curve: Curve
    drive: fx.GraphModule | None
    graph: None = None
    accruals: tuple[Accrual, ...] = ()
    rows: dict[Pair, int | float] = field(default_factory=dict)
    invariant: bool = False

    @property
    def kind(self) -> str:
        """For the report."""
        return f"{self.curve} curve"

    @property
    def parts(self) -> Mapping[str, fx.GraphModule]:
        """The core, which is replayed, or the curve that is read off it and off the argument of its spike."""
        assert self.layer.core is not None
        return {"core": self.layer.core} if self.curve == "replay" else {"mean_outputs": curve_graph(self)}

    def record(self, layer: Layer, trained: Sequence[str], learned: Sequence[str], bins: int) -> None:
        """See CoreRule: the traces are all that a rate curve needs."""

    def local(
        self,
        layer: Layer,
        recorded: Responses | None,
        currents: Sequence[Mapping[str, Tensor]],
        statics: Mapping[str, Tensor],
    ) -> AnalyticResponse:
        """See CoreRule."""
        return AnalyticResponse(self, currents[0], statics)

    def mean_outputs(self, currents: Mapping[str, Tensor], statics: Mapping[str, Tensor]) -> dict[str, Tensor]:
        """Returns the mean of every output under constant currents, with a graph to the currents and statics."""
        values = [statics[name] for name in self.layer.core_statics]
        given = [currents[name] for name in self.layer.currents]
        if self.curve == "replay":
            return self._replay(given, values)
        (current,) = given
        leak, gain, offset = linear_core(self._next_state, torch.zeros_like(current), values)
        drive = gain * current + offset
        if self.curve == "integrator":
            return {self.layer.outputs[0]: drive / (1 - leak).clamp_min(1e-6)}
        threshold = self._threshold(torch.zeros_like(current), gain, values)
        curve = subtractive_rate if self.curve == "subtract" else zero_reset_rate
        return {self.layer.outputs[0]: curve(drive, leak, threshold)}

    def _next_state(self, current: Tensor, state: Tensor, statics: list[Tensor]) -> Tensor:
        assert self.layer.core is not None
        next_state: Tensor = self.layer.core(current, state, *statics)[1][0]
        return next_state

    def _threshold(self, zero: Tensor, gain: Tensor, statics: list[Tensor]) -> Tensor:
        """Reads theta off the spike's argument k (u - theta): -theta k at rest, k times the gain per unit."""
        assert self.drive is not None
        at_rest = self.drive(zero, zero, *statics)
        slope = self.drive(torch.ones_like(zero), zero, *statics) - at_rest
        threshold: Tensor = -at_rest * gain / slope
        return threshold

    def _replay(self, currents: list[Tensor], statics: list[Tensor]) -> dict[str, Tensor]:
        layer = self.layer
        assert layer.core is not None
        shape = torch.broadcast_shapes(*(current.shape for current in currents)) if currents else ()
        states = [torch.zeros(shape, dtype=currents[0].dtype, device=currents[0].device) for _ in layer.states]
        totals: list[Tensor] | None = None
        for _ in range(REPLAY_STEPS):
            outputs, states = layer.core(*currents, *states, *statics)
            totals = (
                list(outputs)
                if totals is None
                else [total + output for total, output in zip(totals, outputs, strict=True)]
            )
        assert totals is not None
        return {name: total / REPLAY_STEPS for name, total in zip(layer.outputs, totals, strict=True)}


class AnalyticResponse:
    """Slopes of the rate curve at the mean currents."""

    def __init__(self, curve: RateCurve, currents: Mapping[str, Tensor], statics: Mapping[str, Tensor]) -> None:
        """Evaluates the curve, with a graph."""
        self.responses: Responses | None = None
        self.factors: dict[Pair, Tensor] = {}
        with torch.enable_grad():
            self.currents = {name: value.detach().requires_grad_() for name, value in currents.items()}
            names = curve.layer.core_statics
            self.statics = {name: statics[name] for name in names if statics[name].requires_grad}
            self.outputs = curve.mean_outputs(self.currents, statics)

    def on_currents(self, layer: Layer, signals: Signals, index: int) -> dict[str, Tensor]:
        """See Response."""
        found = self._pull(list(self.currents.values()), signals)
        return {name: signal for name, signal in zip(self.currents, found, strict=True) if signal is not None}

    def parameter_signals(self, layer: Layer, signals: Signals) -> dict[str, Tensor]:
        """See Response."""
        found = self._pull(list(self.statics.values()), signals)
        return {name: signal for name, signal in zip(self.statics, found, strict=True) if signal is not None}

    def _pull(self, inputs: list[Tensor], signals: Signals) -> Sequence[Tensor | None]:
        given = {
            name: rows[0] for name, rows in signals.items() if rows[0] is not None and self.outputs[name].requires_grad
        }
        if not given or not inputs:
            return [None] * len(inputs)
        outputs = [self.outputs[name] for name in given]
        pulls = [
            signal.to(out.dtype) for signal, out in zip(given.values(), outputs, strict=True) if signal is not None
        ]
        return torch.autograd.grad(outputs, inputs, pulls, retain_graph=True, allow_unused=True)


def rate_curve(program: StepProgram, layer: Layer) -> RateCurve:
    """Chooses the curve of a core by evaluating it, on the example, far below and far above its threshold."""
    replay = RateCurve(layer, "replay", None)
    assert layer.core is not None
    if len(layer.states) != 1 or len(layer.currents) != 1 or len(layer.outputs) != 1:
        return replay
    nodes = {node.name: node for node in program.step.graph.nodes}
    current = torch.zeros_like(example_value(nodes[layer.currents[0]]))
    statics = [example_value(nodes[name]) for name in layer.core_statics]
    with torch.no_grad():
        if not layer.spikes:
            return RateCurve(layer, "integrator", None) if _is_integrator(layer, current, statics) else replay
        if layer.outputs != layer.spikes:
            return replay
        drive = spike_argument(layer)
        return _classify(RateCurve(layer, "subtract", drive), current, statics) if drive is not None else replay


def _is_integrator(layer: Layer, zero: Tensor, statics: list[Tensor]) -> bool:
    assert layer.core is not None
    curve = RateCurve(layer, "integrator", None)
    leak, gain, offset = linear_core(curve._next_state, zero, statics)
    for sign in (1, -1):
        (output,), (state,) = layer.core(torch.full_like(zero, 3.0 * sign), torch.full_like(zero, 5.0 * sign), *statics)
        linear = sign * (5 * leak + 3 * gain) + offset
        if not torch.equal(output, state) or not torch.allclose(state, linear, rtol=1e-3):
            return False
    return bool((leak < 1).all())


def _classify(curve: RateCurve, zero: Tensor, statics: list[Tensor]) -> RateCurve:
    layer = curve.layer
    assert layer.core is not None
    leak, gain, offset = linear_core(curve._next_state, zero, statics)
    threshold = curve._threshold(zero, gain, statics)
    above = 3 * threshold / leak
    (spikes,), (state,) = layer.core(zero, above, *statics)
    (silent,), _ = layer.core(zero, zero, *statics)
    if not (torch.equal(spikes, torch.ones_like(spikes)) and not silent.any()):
        return RateCurve(layer, "replay", None)
    if torch.allclose(state, leak * above + offset - threshold, rtol=1e-3, atol=1e-4):
        return curve
    if torch.equal(state, torch.zeros_like(state)) and bool((leak < 1).all()):
        return RateCurve(layer, "zero", curve.drive)
    return RateCurve(layer, "replay", None)
