"""probe: what a batch shows about how well trace form fits a network."""

from __future__ import annotations

import copy
import itertools
import math
from collections.abc import Iterable
from dataclasses import asdict, dataclass
from typing import Any

import torch
from torch import Tensor
from torch.utils import _pytree as pytree

from tracecompile.diagnostics.activity import Spikes
from tracecompile.diagnostics.aloud import said_aloud
from tracecompile.errors import InvalidInput
from tracecompile.layers import Layer
from tracecompile.rules import rule_of
from tracecompile.runtime.backward.neumann import SETTLED
from tracecompile.runtime.module import TracedModule, session_of
from tracecompile.runtime.window import Window
from tracecompile.tables import text_table

MORE_BINS = "; use more bins"
"""What ends a sentence about a mean that one bin or few do not follow."""
SATURATED = 0.95
"""Spikes per step above which a neuron has no room left."""


@dataclass(frozen=True)
class LayerProbe:
    """One layer on one batch; what cannot be told of it is None.

    Attributes:
        name: The layer.
        rate: Mean spikes per neuron and step; None for a layer that does not spike, as of the next two.
        silent: Share of (sample, neuron) pairs without a spike.
        saturated: Share of pairs that spike in more than 95 % of the steps.
        drift: Norm of the change of the mean input from the first half of the time bins to the second, over its norm;
            None where there is one bin alone.
        warm_up: Weight that the input trace has reached, 1 - decay**steps; 1 where it is a plain mean.
        residual: Last relative change of the recurrent solve; 0 for a feed-forward layer.
        unsettled: Samples for which the solve stopped contracting and was cut off.
        band: Time bins, its own included, that a bin's output answers to: the memory of the neurons in bins.
    """

    name: str
    rate: float | None
    silent: float | None
    saturated: float | None
    drift: float | None
    warm_up: float
    residual: float | None
    unsettled: int
    band: int

    def advice(self) -> list[str]:
        """Returns what the figures imply, one sentence each."""
        found = []
        if self.silent is not None and self.silent > 0.9:
            found.append(f"{self.name}: {self.silent:.0%} silent; lower the threshold or scale its weights up.")
        if self.saturated is not None and self.saturated > 0.5:
            found.append(f"{self.name}: {self.saturated:.0%} saturated; raise the threshold or scale its weights down.")
        if self.drift is not None and self.drift > 0.5:
            found.append(f"{self.name}: the input drifts ({self.drift:.2f}) over the sequence{MORE_BINS}.")
        if self.warm_up < 0.9:
            found.append(f"{self.name}: the trace has warmed up to {self.warm_up:.0%} only; use a smaller decay.")
        if self.unsettled or self.residual is None or self.residual > SETTLED:
            change = "without bounds" if self.residual is None else f"{self.residual:.1%}"
            found.append(
                f"{self.name}: the recurrent solve did not settle (change {change}, {self.unsettled} "
                f"samples cut off){MORE_BINS} or smaller lateral weights."
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
        inputs: A tensor or a tuple of tensors, as the network takes them; for a step model an iterable of those, one a
            step, or a tensor with time as its first axis.

    Raises:
        InvalidInput: The network records nothing: it is under another rule, or nothing in it is trained. Or there is no
            step, or there are steps for a network that takes whole sequences.
    """
    settings = session_of(net).settings
    if not rule_of(settings).reruns:
        raise InvalidInput(f"probe reads what the measured rule records, not rule {settings.rule!r}.")
    with torch.random.fork_rng(), torch.enable_grad():
        other = copy.deepcopy(net)
        window, spikes = _recorded(other, inputs)
    program = other.program
    layers = tuple(_layer(layer, window, spikes) for layer in program.layers)
    asking = [name for name, parameter in other.named_parameters() if parameter.requires_grad]
    return Probe(layers, (*said_aloud(program), *other.report.cut_off(asking)))


def _recorded(net: TracedModule, inputs: Any) -> tuple[Window, Spikes]:
    """Runs the network forward and backward, counting spikes on the way."""
    session = session_of(net)
    one_call = isinstance(inputs, tuple) or (isinstance(inputs, Tensor) and not _of_steps(net))
    steps = iter([inputs] if one_call else inputs)
    if (sample := next(steps, None)) is None:
        raise InvalidInput("There is no step to look at.", "Pass at least one.")
    executor, call = session.prepared_for(_arguments(sample), {})
    if not rule_of(executor.program.settings).reruns:
        raise InvalidInput("The network records nothing: its layers are computed one after the other, exactly.")
    spikes = Spikes(executor.program)
    executor.observer = spikes.add
    if executor.program.kind == "sequence":
        if not one_call:
            raise InvalidInput("The model takes a whole sequence a call, not its steps.", "Pass a tensor, or a tuple.")
        leaves, window, _ = executor.sequence(call.leaves, session.settings.bins)
    else:
        leaves, window = _stepped(net, itertools.chain([sample], steps))
    if window is None:
        raise InvalidInput("The network records nothing: none of its parameters requires a gradient.")
    outputs = [leaf for leaf in pytree.tree_leaves(leaves) if isinstance(leaf, Tensor) and leaf.requires_grad]
    signs = [torch.ones_like(output).bernoulli_(0.5).mul_(2).sub_(1) for output in outputs]
    if outputs:
        torch.autograd.backward(outputs, signs)
    return window, spikes


def _of_steps(net: TracedModule) -> bool:
    """Tells whether a network is known to take one step a call: a tensor is then a sequence of them."""
    session = session_of(net)
    return session.is_ready and session.program.kind == "step"


def _arguments(given: Any) -> tuple[Any, ...]:
    return given if isinstance(given, tuple) else (given,)


def _stepped(net: TracedModule, inputs: Iterable[Any]) -> tuple[list[Any], Window | None]:
    leaves: list[Any] = []
    net.reset()
    for step in inputs:
        leaves = pytree.tree_leaves(net(*_arguments(step)))
    return leaves, session_of(net).window


def _layer(layer: Layer, window: Window, spikes: Spikes) -> LayerProbe:
    decay = layer.decay
    responses = window.record.responses.get(layer.name)
    residuals, unsettled = window.settling.residuals, window.settling.unsettled
    block = next((name for name in residuals if layer.name in name.split("+")), "")
    return LayerProbe(
        name=layer.name,
        rate=spikes.rate(layer.name),
        silent=spikes.share(layer.name, lambda rate: rate == 0),
        saturated=spikes.share(layer.name, lambda rate: rate > SATURATED),
        drift=_drift(layer, window, decay),
        warm_up=1.0 if decay is None else 1.0 - decay**spikes.steps,
        residual=_told(residuals.get(block, 0.0)),
        unsettled=unsettled.get(block, 0),
        band=responses.band if responses is not None else 1,
    )


def _drift(layer: Layer, window: Window, decay: float | None) -> float | None:
    """Returns the largest drift of what a layer reads from below; one bin cannot see any."""
    bins = window.record.bins.count
    if bins == 1:
        return None
    worst = 0.0
    for source in (source for source in layer.sources if not source.delay):
        means = torch.stack(
            [window.record.traces[source.value, "", decay].mean(index).double() for index in range(bins)]
        )
        change = means[bins // 2 :].mean(0) - means[: bins // 2].mean(0)
        worst = max(worst, float(change.norm() / means.mean(0).norm().clamp_min(1e-12)))
    return _told(worst)


def _told(value: float) -> float | None:
    return value if math.isfinite(value) else None


def _text(value: object) -> str:
    if value is None:
        return "-"
    return f"{value:.3g}" if isinstance(value, float) else str(value)
