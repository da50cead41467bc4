"""Where the bins of a second pass lie: narrow where the learning signal is, wide where there is little of it.

The first pass cannot know when the loss will look. The second one does, and with the same number of bins resolves the
time that matters: the steps before a first spike, say, and not the rest of the sequence. The density of the bins is
that of the signals in all layers. A layer hands a signal on to what came before it, for as long as its states remember;
so going down from the outputs the signal's profile over time is filtered backwards by the mean decay of each layer.
"""

from __future__ import annotations

from collections.abc import Iterable, Sequence

import torch
from torch import Tensor

from tracecompile.layers import Layer
from tracecompile.program import StepProgram
from tracecompile.runtime.backward.signals import TimedSignal
from tracecompile.runtime.bins import Bins
from tracecompile.runtime.record import Moment

EVEN_SHARE = 0.5
"""Part of the density, next to that of the signals, that is the same everywhere before the last signal."""


def bins_for(program: StepProgram, moment: Moment, signals: Iterable[TimedSignal], bins: Bins) -> Bins:
    """Returns as many bins as there were, placed by the learning signals.

    Args:
        program: What was run.
        moment: Any step of it, for the decay of its states.
        signals: On single steps.
        bins: The bins of the first pass.
    """
    steps, count = bins.edges[-1], bins.count
    profile = torch.zeros(steps, dtype=torch.float64)
    for signal in signals:
        norms = (
            signal.values.detach().reshape(len(signal.values), -1).double().norm(dim=1).cpu()[max(0, -signal.first) :]
        )
        profile[max(0, signal.first) :][: len(norms)] += norms
    if count == 1 or not bool(profile.any()):
        return bins
    end = int(profile.nonzero().max()) + 1
    density = _density(program, moment, profile[:end])
    edges = _quantiles(density, count - (end < steps))
    return Bins((*edges, steps) if end < steps else tuple(edges))


def _density(program: StepProgram, moment: Moment, profile: Tensor) -> Tensor:
    """Returns the mean profile of the signals in all layers."""
    total = profile / profile.sum()
    for layer in reversed(program.layers):
        decay = _mean_decay(layer, moment)
        if decay > 0:
            profile = _filtered(profile, decay)
            total = total + profile / profile.sum()
    return total / total.sum() + EVEN_SHARE / len(total)


def _mean_decay(layer: Layer, moment: Moment) -> float:
    """Returns how much of its slowest state a layer keeps from one step to the next, on average over its neurons."""
    derivatives = moment.derivatives.get(layer.name, {})
    kept = [derivatives.get((f"next:{i}", state), 0.0) for i, state in enumerate(layer.states)]
    return max((min(float(torch.as_tensor(value).abs().mean()), 1.0) for value in kept), default=0.0)


def _filtered(profile: Tensor, decay: float) -> Tensor:
    kept, rows = 0.0, []
    for value in reversed(profile.tolist()):
        kept = decay * kept + value
        rows.append(kept)
    return torch.tensor(rows[::-1], dtype=profile.dtype)


def _quantiles(density: Tensor, count: int) -> Sequence[int]:
    """Returns the edges of bins of equal weight, none of them without a step."""
    steps = len(density)
    count = min(count, steps)
    cumulated = density.cumsum(0) / density.sum()
    wanted = torch.arange(1, count, dtype=density.dtype) / count
    edges = [0, *(torch.searchsorted(cumulated, wanted) + 1).tolist(), steps]
    for index in range(1, count):
        edges[index] = max(edges[index], edges[index - 1] + 1)
    for index in range(count - 1, 0, -1):
        edges[index] = min(edges[index], edges[index + 1] - 1)
    return edges
