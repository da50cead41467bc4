"""The measured rule as the passes, the runtime and the report see it."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field, replace
from typing import ClassVar, Literal

from torch import Tensor, fx

from tracecompile.layers import Accrual, Layer, Pair, Scale
from tracecompile.program import Settings, StepProgram
from tracecompile.rules.measured.lines import SCALED, MeasuredLines, measured
from tracecompile.rules.measured.responses import Responses
from tracecompile.rules.measured.tangents import Tangents
from tracecompile.rules.rule import Response, Rule, Signals


class MeasuredRule(Rule):
    """Records how the outputs of every core answer, per time bin."""

    name: ClassVar[str] = "measured"
    records: ClassVar[bool] = True
    by_neuron: ClassVar[bool] = True
    reruns: ClassVar[bool] = True

    def layer_by_layer(self, settings: Settings) -> Settings:
        """See Rule.

        All steps of such a layer are computed once more for its gradient: bins would save nothing.
        """
        return settings if settings.decay is not None else replace(settings, rule="exact", bins=1)

    def core(self, program: StepProgram, layer: Layer, trainable: frozenset[str]) -> MeasuredCore:
        """See Rule."""
        return MeasuredCore(measured(program, layer, trainable))

    def resolves_steps(self, settings: Settings) -> bool:
        """See Rule."""
        return settings.decay is None

    def is_exact(self, bins: int, steps: int) -> bool:
        """See Rule."""
        return bins >= steps

    def bins(self, settings: Settings) -> int:
        """See Rule."""
        return settings.bins if settings.decay is None else 1

    def status(self, settings: Settings) -> tuple[Literal["exact", "trace"], str]:
        """See Rule."""
        return "trace", f"measured slope, {settings.bins} time bin{'s' * (settings.bins > 1)}"

    def title(self, settings: Settings) -> str:
        """See Rule."""
        return f"{self.name}, {settings.bins} time bin{'s' if settings.bins != 1 else ''}"

    def notes(self, program: StepProgram) -> list[str]:
        """See Rule."""
        settings, notes = program.settings, []
        if settings.decay is None:
            within = (
                "the finite sequence, as measured" if settings.bins == 1 else "the finite sequence and the bins in it"
            )
            notes.append(f"Feed-forward layers are scaled by a factor for {within}; it is one with a step per bin.")
        if settings.decay is None and program.kind == "sequence":
            notes.append(
                "A loss that reads single steps (a maximum over time, a first spike) makes backward run the sequence "
                "forward once more, from the same inputs (twice, if it reads neurons that spike)."
            )
        return notes + _without_spikes(program)


def _without_spikes(program: StepProgram) -> list[str]:
    """Says, of a model in which nothing spikes, what a bin forgets."""
    if any(core.spikes for core in program.cores):
        return []
    units = [(layer.name, layer.response) for layer in program.layers if layer.states]
    same = [name for name, made in units if isinstance(made, MeasuredCore) and made.invariant]
    other = [name for name, made in units if name not in same]
    notes = []
    if same:
        notes.append(
            f"Nothing spikes in {', '.join(same)}: the slope is measured as that of a neuron is, and is the same at "
            "every step. A bin forgets how its inputs move within it, and nothing else."
        )
    if other:
        notes.append(
            f"Nothing spikes in {', '.join(other)}: the slope is measured as that of a neuron is, and changes from "
            "step to step, as that of a gate does. A bin keeps its mean and forgets what slope and input do together "
            "within it: tracecompile.compare_gradients tells how near that comes to backpropagation through time."
        )
    return notes


@dataclass(frozen=True)
class MeasuredCore:
    """One core with the lines of the rule; see CoreRule."""

    lines: MeasuredLines
    kind: str = ""

    @property
    def graph(self) -> fx.GraphModule:
        """The core in trace form."""
        return self.lines.graph

    @property
    def accruals(self) -> tuple[Accrual, ...]:
        """What it carries."""
        return (*self.lines.tangents, *self.lines.responses)

    @property
    def rows(self) -> dict[Pair, int | float]:
        """Of its derivatives."""
        return self.lines.rows

    @property
    def parts(self) -> Mapping[str, fx.GraphModule]:
        """None: backward reads what was recorded."""
        return {}

    @property
    def invariant(self) -> bool:
        """Whether these are the same at every step."""
        return self.lines.invariant

    def record(self, layer: Layer, trained: Sequence[str], learned: Sequence[str], bins: int) -> Responses:
        """See CoreRule."""
        parameters = [name for name in layer.core_statics if name in trained]
        scaled = dict.fromkeys(f"{SCALED}{scale.current}" for scale in layer.scales if _learns(layer, scale, trained))
        if layer.decay is None:
            parameters += scaled
        tangents = Tangents(layer, self.lines.alike, parameters, learned, bins)
        return Responses(tangents, bins, layer.decay)

    def local(
        self,
        layer: Layer,
        recorded: Responses | None,
        currents: Sequence[Mapping[str, Tensor]],
        statics: Mapping[str, Tensor],
    ) -> Response:
        """See CoreRule."""
        assert recorded is not None
        return MeasuredResponse(recorded, currents)


@dataclass
class MeasuredResponse:
    """Responses as they were recorded."""

    responses: Responses
    currents: Sequence[Mapping[str, Tensor]]
    """Means by bin, as the local graph has them."""
    factors: dict[Pair, Tensor] = field(default_factory=dict)
    """Finite-horizon factors by (output, variable); filled by the solver once it knows the profile of the signal."""

    def on_currents(self, layer: Layer, signals: Signals, index: int) -> dict[str, Tensor]:
        """See Response."""
        alike = self.responses.tangents.alike
        found: dict[str, Tensor] = {}
        for current in layer.currents:
            same = found.get(alike.get(current, ""))
            signal = self.responses.pulled(current, signals, index, self.factors) if same is None else same
            if signal is not None:
                found[current] = signal
        return found

    def parameter_signals(self, layer: Layer, signals: Signals) -> dict[str, Tensor]:
        """See Response."""
        names = [name for name in self.responses.tangents.slots if name not in layer.currents]
        found = ((name, self._pulled(name, signals)) for name in names)
        return {name: signal for name, signal in found if signal is not None}

    def _pulled(self, name: str, signals: Signals) -> Tensor | None:
        if not name.startswith(SCALED):
            return self.responses.pulled(name, signals, 0, self.factors)
        current = name.removeprefix(SCALED)
        means = [currents[current].detach() for currents in self.currents]
        return self.responses.lacking(name, current, means, signals, self.factors)


def _learns(layer: Layer, scale: Scale, trained: Sequence[str]) -> bool:
    if scale.static:
        return scale.static in trained
    return layer.synapse.get_parameter(f"{scale.module}.weight").requires_grad
