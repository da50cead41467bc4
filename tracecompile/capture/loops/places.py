"""Places of the user's program and how often a trace comes by."""

from __future__ import annotations

from typing import Any

from torch import fx

from tracecompile.capture.tracing.source import Place
from tracecompile.capture.tracing.tape import Tape


def place_key(node: fx.Node) -> Any:
    """Returns what the visits of one expression share; None for a node that belongs to no expression."""
    place = node.meta.get("place")
    return None if place is None or node.op in ("placeholder", "get_attr") else (place, node.op, str(node.target))


def written_place(node: fx.Node) -> Place | None:
    """Returns where in the user's code a node stands, whatever the capture added to that."""
    place = node.meta.get("place")
    while isinstance(place, tuple):
        place = next((part for part in place if isinstance(part, (Place, tuple))), None)
    return place


def visit_counts(tape: Tape) -> dict[Any, int]:
    """Counts the visits of every place."""
    counts: dict[Any, int] = {}
    for node in tape.graph.nodes:
        key = place_key(node)
        if key is not None:
            counts[key] = counts.get(key, 0) + 1
    return counts


def visits_of(tape: Tape) -> dict[Any, list[fx.Node]]:
    """Returns the nodes of each place."""
    found: dict[Any, list[fx.Node]] = {}
    for node in tape.graph.nodes:
        key = place_key(node)
        if key is not None:
            found.setdefault(key, []).append(node)
    return found
