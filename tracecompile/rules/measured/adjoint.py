"""Signals on the currents of the cores that the user reads, step by step.

Backwards in time, with G the signal on the outputs and a the adjoint of the states,

    q_t = J_yI^T G_t + J_sI^T a_t,      a_{t-1} = J_ys^T G_t + J_ss^T a_t,

which needs no more memory than G itself, if the core is the same linear filter at every step, as a leaky readout is.
One that spikes needs its Jacobians of all steps: a few times what the user holds as its outputs, while backward runs.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence

import torch
from torch import Tensor

from tracecompile.layers import Layer, Pair

Derivatives = Mapping[Pair, Tensor | float]
"""Per-neuron derivatives of one step of a core: (result, variable) to a tensor or a number."""


class KnownCurrents:
    """Signals on the currents of cores that the user reads, step by step.

    Attributes:
        by_layer: By layer name, by current, (steps, *shape).
    """

    def __init__(self) -> None:
        """Knows nothing yet."""
        self.by_layer: dict[str, dict[str, Tensor]] = {}

    def add(self, layer: Layer, derivatives: Sequence[Derivatives], signals: Mapping[str, Tensor]) -> None:
        """Pulls the signals on a layer's outputs, (steps, *shape) each, backwards in time.

        Args:
            layer: The layer.
            derivatives: Its Jacobian at every step, or the one that holds at all of them.
            signals: By output.
        """
        found: dict[str, list[Tensor]] = {current: [] for current in layer.currents}
        adjoint: dict[str, Tensor] = {}
        steps = next(iter(signals.values())).shape[0]
        for step in reversed(range(steps)):
            given = {name: signal[step] for name, signal in signals.items()}
            given |= {f"next:{i}": adjoint[state] for i, state in enumerate(layer.states) if state in adjoint}
            slopes = derivatives[step if len(derivatives) > 1 else 0]
            for current in layer.currents:
                pulled = _pulled(slopes, given, current)
                found[current].append(torch.zeros_like(next(iter(given.values()))) if pulled is None else pulled)
            fresh = ((state, _pulled(slopes, given, state)) for state in layer.states)
            adjoint = {state: signal for state, signal in fresh if signal is not None}
        self.by_layer[layer.name] = {current: torch.stack(rows[::-1]) for current, rows in found.items()}

    def at(self, layer: Layer, step: int) -> dict[str, Tensor]:
        """Returns the signals on the currents of a layer in one step; nothing where they are not known."""
        return {current: rows[step] for current, rows in self.by_layer.get(layer.name, {}).items()}


def _pulled(derivatives: Derivatives, signals: Mapping[str, Tensor], variable: str) -> Tensor | None:
    total: Tensor | None = None
    for result, signal in signals.items():
        slope = derivatives.get((result, variable))
        if slope is not None:
            total = slope * signal if total is None else total + slope * signal
    return total
