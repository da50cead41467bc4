"""probe: what a batch shows about how well trace form fits a network."""

from __future__ import annotations

import copy
from collections.abc import Iterable
from dataclasses import asdict, dataclass
from typing import Any

import torch
from torch import Tensor
from torch.utils import _pytree as pytree

from tracecompile.diagnostics.activity import Spikes
from tracecompile.diagnostics.aloud import said_aloud
from tracecompile.errors import InvalidInput
from tracecompile.report import text_table
from tracecompile.rules import rule_of
from tracecompile.runtime.backward.neumann import SETTLED
from tracecompile.runtime.module import TracedModule, session_of
from tracecompile.runtime.window import Window

SATURATED = 0.95
"""Spikes per step above which a neuron has no room left."""


@dataclass(frozen=True)
class LayerProbe:
    """One layer on one batch.

    Attributes:
        name: The layer.
        rate: Mean spikes per neuron and step; nan for a layer that does not spike.
        silent: Share of (sample, neuron) pairs without a spike.
        saturated: Share of pairs that spike in more than 95 % of the steps.
        drift: Norm of the change of the mean input from the first half of the time bins to the second, over its norm.
        warm_up: Weight that the input trace has reached, 1 - decay**steps; 1 where it is a plain mean.
        residual: Last relative change of the recurrent solve; 0 for a feed-forward layer.
        unsettled: Samples for which the solve stopped contracting and was cut off.
        band: Time bins, its own included, that a bin's output answers to: the memory of the neurons in bins.
    """

    name: str
    rate: float
    silent: float
    saturated: float
    drift: float
    warm_up: float
    residual: float
    unsettled: int
    band: int

    def advice(self) -> list[str]:
        """Returns what the figures imply, one sentence each."""
        found = []
        if self.silent > 0.9:
            found.append(f"{self.name}: {self.silent:.0%} silent; lower the threshold or scale its weights up.")
        if self.saturated > 0.5:
            found.append(f"{self.name}: {self.saturated:.0%} saturated; raise the threshold or scale its weights down.")
        if self.drift > 0.5:
            found.append(f"{self.name}: the input drifts ({self.drift:.2f}) over the sequence; use more bins.")
        if self.warm_up < 0.9:
            found.append(f"{self.name}: the trace has warmed up to {self.warm_up:.0%} only; use a smaller decay.")
        if self.unsettled or self.residual > SETTLED:
            found.append(
                f"{self.name}: the recurrent solve did not settle (change {self.residual:.1%}, {self.unsettled} "
                "samples cut off); use more bins or smaller lateral weights."
            )
        return found


@dataclass(frozen=True)
class Probe:
    """What a batch shows, layer by layer; printing it gives a table and the advice."""

    layers: tuple[LayerProbe, ...]
    said: tuple[str, ...] = ()
    """What was said when the network was converted: thresholds without a surrogate, parameters that cannot learn."""

    @property
    def advice(self) -> tuple[str, ...]:
        """What the figures imply, after what was said when the network was converted."""
        return (*self.said, *(sentence for layer in self.layers for sentence in layer.advice()))

    def __str__(self) -> str:
        header = ("layer", "rate", "silent", "saturated", "drift", "warm-up", "residual", "unsettled", "band")
        rows = [[_text(value) for value in asdict(layer).values()] for layer in self.layers]
        return "\n".join([text_table(header, rows), *(f"- {sentence}" for sentence in self.advice)])

    def to_dict(self) -> dict[str, Any]:
        """Returns the figures and the advice, ready for ``json.dumps``."""
        return {"layers": [asdict(layer) for layer in self.layers], "advice": list(self.advice)}


def probe(net: TracedModule, inputs: Any) -> Probe:
    """Looks at a converted network on one batch; the network is left as it was.

    Args:
        net: A converted network under the measured rule.
        inputs: A tensor or a tuple of tensors, as the network takes them; for a step model an iterable of those.

    Raises:
        InvalidInput: The network records nothing: it is under another rule, or nothing in it is trained.
    """
    settings = session_of(net).settings
    if not rule_of(settings).reruns:
        raise InvalidInput(f"probe reads what the measured rule records, not rule {settings.rule!r}.")
    with torch.random.fork_rng(), torch.enable_grad():
        other = copy.deepcopy(net)
        window, spikes = _recorded(other, inputs)
    program = other.program
    layers = tuple(_layer(program.layers[i], window, spikes) for i in range(len(program.layers)))
    return Probe(layers, tuple(said_aloud(program)))


def _recorded(net: TracedModule, inputs: Any) -> tuple[Window, Spikes]:
    """Runs the network forward and backward, counting spikes on the way."""
    sample = inputs if isinstance(inputs, (Tensor, tuple)) else next(iter(inputs))
    session = session_of(net)
    executor, call = session.prepared_for(sample if isinstance(sample, tuple) else (sample,), {})
    spikes = Spikes(executor.program)
    original = executor.observer
    executor.observer = spikes.add
    try:
        if executor.program.kind == "sequence":
            leaves, window, _ = executor.sequence(call.leaves, session.settings.bins)
        else:
            leaves, window = _stepped(net, inputs)
    finally:
        executor.observer = original
    if window is None:
        raise InvalidInput("The network records nothing: none of its parameters requires a gradient.")
    outputs = [leaf for leaf in pytree.tree_leaves(leaves) if isinstance(leaf, Tensor) and leaf.requires_grad]
    signs = [torch.ones_like(output).bernoulli_(0.5).mul_(2).sub_(1) for output in outputs]
    if outputs:
        torch.autograd.backward(outputs, signs)
    return window, spikes


def _stepped(net: TracedModule, inputs: Iterable[Any]) -> tuple[list[Any], Window | None]:
    leaves: list[Any] = []
    net.reset()
    for step in inputs:
        leaves = pytree.tree_leaves(net(*(step if isinstance(step, tuple) else (step,))))
    return leaves, session_of(net).window


def _layer(layer: Any, window: Window, spikes: Spikes) -> LayerProbe:
    counts = spikes.counts.get(layer.name)
    rates = None if counts is None else counts / spikes.steps
    decay = layer.decay
    responses = window.record.responses.get(layer.name)
    block = next((name for name in window.residuals if layer.name in name.split("+")), "")
    return LayerProbe(
        name=layer.name,
        rate=float("nan") if rates is None else float(rates.mean()),
        silent=0.0 if rates is None else float((rates == 0).double().mean()),
        saturated=0.0 if rates is None else float((rates > SATURATED).double().mean()),
        drift=_drift(layer, window, decay),
        warm_up=1.0 if decay is None else 1.0 - decay**spikes.steps,
        residual=window.residuals.get(block, 0.0),
        unsettled=window.unsettled.get(block, 0),
        band=responses.band if responses is not None else 1,
    )


def _drift(layer: Any, window: Window, decay: float | None) -> float:
    """Returns the largest drift of what a layer reads from below; 0 with one bin, which cannot see any."""
    bins = window.record.bins.count
    worst = 0.0
    for source in (source for source in layer.sources if not source.delay):
        means = torch.stack(
            [window.record.traces[source.value, "", decay].mean(index).double() for index in range(bins)]
        )
        if bins > 1:
            change = means[bins // 2 :].mean(0) - means[: bins // 2].mean(0)
            worst = max(worst, float(change.norm() / means.mean(0).norm().clamp_min(1e-12)))
    return worst


def _text(value: object) -> str:
    return f"{value:.3g}" if isinstance(value, float) else str(value)
