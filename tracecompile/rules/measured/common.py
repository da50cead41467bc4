"""What the derivatives of a core have in common: over its currents, and over time."""

from __future__ import annotations

from collections.abc import Collection
from typing import Any

from torch import fx

from tracecompile.layers import Jacobian, Layer, Pair


def alike_currents(layer: Layer, rows: dict[Pair, int | float]) -> dict[str, str]:
    """Returns the currents that have all their derivatives in common with an earlier one, and that one."""
    results = dict.fromkeys(result for result, _ in rows)
    first: dict[Any, str] = {}
    found = {}
    for current in layer.currents:
        key = tuple(rows.get((result, current)) for result in results)
        if first.setdefault(key, current) != current:
            found[current] = first[key]
    return found


def is_invariant(layer: Layer, jacobian: Jacobian, drawn: Collection[str]) -> bool:
    """Tells whether a core's derivatives by its currents and states are the same at every step."""
    graph = jacobian.graph.graph
    placeholders = [node for node in graph.nodes if node.op == "placeholder"]
    varying: set[fx.Node] = set(placeholders[: len(layer.currents) + len(layer.states)])
    varying.update(node for node in placeholders if node.name in drawn)
    for node in graph.nodes:
        if any(source in varying for source in node.all_input_nodes):
            varying.add(node)
    output = next(node for node in reversed(graph.nodes) if node.op == "output")
    entries: Any = output.args[0][1]
    of_signals = {*layer.currents, *layer.states}
    rows = [row for (_, variable), row in jacobian.rows.items() if variable in of_signals]
    return not any(entries[row] in varying for row in rows if isinstance(row, int))
