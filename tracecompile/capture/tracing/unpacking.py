"""Tensors that are taken apart by one expression: ``zip(x, y)`` iterates over two at the same place."""

from __future__ import annotations

import operator
from typing import Any

from torch import fx

from tracecompile.capture.loops.places import place_key, visit_counts
from tracecompile.capture.tracing.tape import Tape


def separate_unpacked(tape: Tape, other: Tape | None = None) -> None:
    """Gives each of several tensors that one expression takes apart before the loop a place of its own.

    The parts of both would be visits of one place otherwise, as if the time loop came round twice as often.

    Args:
        other: The trace of another length, where there is one: what both visit equally often is outside the loop.
            Without it, what has no more parts than visits is taken for something that the loop splits at every step.
    """
    elsewhere = None if other is None else visit_counts(other)
    parents: dict[Any, list[fx.Node]] = {}
    for node in tape.graph.nodes:
        if place_key(node) is not None and isinstance(node.meta["val"], (tuple, list)):
            parents.setdefault(place_key(node), []).append(node)
    for key, nodes in parents.items():
        if elsewhere is not None:
            inside = elsewhere.get(key) != len(nodes)
        else:
            inside = any(len(node.meta["val"]) <= len(nodes) for node in nodes)
        if inside or len(nodes) < 2:
            continue
        for number, node in enumerate(nodes):
            for user in node.users:
                if user.target is operator.getitem and user.meta.get("place") == node.meta["place"]:
                    user.meta["place"] = (node.meta["place"], number)
