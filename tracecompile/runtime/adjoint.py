"""Cores that are the same linear filter at every step: signals on their outputs are known step by step on the currents.

A leaky readout is one. Backwards in time, with G the signal on the outputs and a the adjoint of the states,

    q_t = J_yI^T G_t + J_sI^T a_t,      a_{t-1} = J_ys^T G_t + J_ss^T a_t,

which needs no more memory than G itself.
"""

from __future__ import annotations

from collections.abc import Mapping

import torch
from torch import Tensor, fx

from tracecompile.layers import Jacobian, Layer
from tracecompile.runtime.tangents import Derivatives


def is_time_invariant(layer: Layer) -> bool:
    """Tells whether a core's derivatives by its currents and states are the same at every step."""
    if layer.core is None or not isinstance(layer.response, Jacobian):
        return False
    graph = layer.response.graph.graph
    placeholders = [node for node in graph.nodes if node.op == "placeholder"]
    varying: set[fx.Node] = set(placeholders[: len(layer.currents) + len(layer.states)])
    for node in graph.nodes:
        if any(source in varying for source in node.all_input_nodes):
            varying.add(node)
    output = next(node for node in reversed(graph.nodes) if node.op == "output")
    entries = output.args[0][1]
    of_signals = {*layer.currents, *layer.states}
    rows = [row for (_, variable), row in layer.response.rows.items() if variable in of_signals]
    return not any(entries[row] in varying for row in rows if isinstance(row, int))


class KnownCurrents:
    """Signals on the currents of time-invariant cores, step by step.

    Attributes:
        by_layer: By layer name, by current, (steps, *shape).
    """

    def __init__(self) -> None:
        """Knows nothing yet."""
        self.by_layer: dict[str, dict[str, Tensor]] = {}

    def add(self, layer: Layer, derivatives: Derivatives, signals: Mapping[str, Tensor]) -> None:
        """Filters the signals on a layer's outputs, (steps, *shape) each, backwards in time."""
        found: dict[str, list[Tensor]] = {current: [] for current in layer.currents}
        adjoint: dict[str, Tensor] = {}
        steps = next(iter(signals.values())).shape[0]
        for step in reversed(range(steps)):
            given = {name: signal[step] for name, signal in signals.items()}
            given |= {f"next:{i}": adjoint[state] for i, state in enumerate(layer.states) if state in adjoint}
            for current in layer.currents:
                pulled = _pulled(derivatives, given, current)
                found[current].append(torch.zeros_like(next(iter(given.values()))) if pulled is None else pulled)
            fresh = ((state, _pulled(derivatives, given, state)) for state in layer.states)
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
