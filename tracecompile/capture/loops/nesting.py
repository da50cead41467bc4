"""Loops over time within another loop: one loop per layer, written once.

``for layer in self.layers: for x_t in x: ...`` visits one place in all steps of the first layer, then in all steps of
the second; a loop over layers within the loop over time visits it in all layers of the first step. The number of visits
is the same. But between two loops over time something is done once a layer, which parts the visits into groups of one
visit a step: these become places of their own.
"""

from __future__ import annotations

from bisect import bisect_left
from typing import Any

from tracecompile.capture.loops.places import visits_of
from tracecompile.capture.tracing.tape import Tape

MOST_MISSING = 2
"""How many steps a loop may leave out: ``range(1, T)`` one, and one more that looks back."""


def separate_loops(tape: Tape, steps: int, growth: dict[Any, int] | None = None) -> None:
    """Gives what each of several loops over time does, and what is done around it, places of their own.

    Args:
        tape: The trace; its nodes' places are changed.
        steps: Number of time steps.
        growth: How many more visits of each place one more step makes, where that is known.
    """
    position = {node: number for number, node in enumerate(tape.graph.nodes)}
    visits = visits_of(tape)
    fences: dict[int, list[list[int]]] = {}
    for key, nodes in visits.items():
        if len(nodes) > 1 and not (growth or {}).get(key, 0):
            fences.setdefault(len(nodes), []).append([position[node] for node in nodes])
    shortest = steps if growth is None else max(steps - MOST_MISSING, 1)
    found: dict[int, list[int]] = {}
    for key, nodes in visits.items():
        if growth is None or growth.get(key, 0):
            fence = _fence([position[node] for node in nodes], fences, range(steps, shortest - 1, -1))
            if fence is not None:
                found.setdefault(len(fence), fence)
    for fence in found.values():
        for nodes in visits.values():
            groups = [bisect_left(fence, position[node]) for node in nodes]
            if len(set(groups)) == len(fence):
                for node, group in zip(nodes, groups, strict=True):
                    node.meta["place"] = (node.meta["place"], "loop", group)


def _fence(visits: list[int], fences: dict[int, list[list[int]]], lengths: range) -> list[int] | None:
    """Returns the visits of something done once a loop, where they part these visits into those of single loops."""
    for length in lengths:
        loops, rest = divmod(len(visits), length)
        if rest or loops < 2:
            continue
        wanted = [number for number in range(loops) for _ in range(length)]
        for fence in fences.get(loops, []):
            groups = [bisect_left(fence, visit) for visit in visits]
            if groups in (wanted, [number + 1 for number in wanted]):
                return fence
    return None
