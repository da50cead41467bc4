"""What is read at a later step: as an edge that closes a cycle, where readers take it so, or through a Delay."""

from __future__ import annotations

from collections.abc import Mapping

import numpy as np

from tracecompile.exporting.nir.building import Building, Edge, Flow
from tracecompile.nir.order import delayed_edges

LATE, OWN = "@", "!"
"""Parts of the names of values of earlier steps until the nodes are known that make them; of a neuron's own spikes."""
NEURONS = ("LIF", "LI", "IF", "I", "CubaLIF")


def late_name(origin: str, delay: int) -> str:
    """Returns what stands in an edge for a value of so many steps before."""
    return f"{LATE}{delay}{LATE}{origin}"


def late_of(name: str) -> tuple[str, int] | None:
    """Returns (origin, delay) of such a name; None of a node's."""
    if not name.startswith(LATE):
        return None
    delay, origin = name[1:].split(LATE, 1)
    return origin, int(delay)


def with_late_edges(building: Building, flows: Mapping[str, Flow], end: str, dt: float) -> Building:
    """Returns the nodes that lead to one of them, with nodes or edges in the place of the names of earlier values.

    Args:
        building: The nodes; edges may come from such names.
        flows: The values that they name.
        end: The node.
        dt: Seconds per step.
    """
    late = {edge: found for edge in building.edges if (found := late_of(edge[0])) is not None}
    direct = {edge for edge, (origin, delay) in late.items() if delay == 1 and _from_neurons(building, flows[origin])}
    while True:
        made, expected = _joined(building, flows, late, direct, dt)
        made = made.only([end])
        kinds = {name: type(node).__name__ for name, node in made.nodes.items()}
        delays = {name for name, kind in kinds.items() if kind == "Delay"}
        neurons = {name for name, kind in kinds.items() if kind in (*NEURONS, "Delay")}
        cut = delayed_edges(list(made.nodes), made.edges, neurons, delays)
        wrong = {edge for edge, ends in expected.items() if not ends & set(made.edges) <= cut}
        if not wrong and cut <= {each for ends in expected.values() for each in ends}:
            return made
        direct -= wrong or direct


def _from_neurons(building: Building, flow: Flow) -> bool:
    return all(type(building.nodes[name]).__name__ in NEURONS for name in flow.names)


def _joined(
    building: Building, flows: Mapping[str, Flow], late: Mapping[Edge, tuple[str, int]], direct: set[Edge], dt: float
) -> tuple[Building, dict[Edge, set[Edge]]]:
    """Returns a copy with edges for the direct ones, which it returns as well, and Delays for the others."""
    import nir

    made = Building(dict(building.nodes), [edge for edge in building.edges if edge not in late])
    expected: dict[Edge, set[Edge]] = {}
    known: dict[tuple[str, int], str] = {}
    for edge, (origin, delay) in late.items():
        flow = flows[origin]
        if edge in direct:
            before = len(made.edges)
            made.lead(flow, edge[1])
            expected[edge] = set(made.edges[before:])
            continue
        if (origin, delay) not in known:
            node = nir.Delay(np.full(flow.shape, delay * dt))
            known[origin, delay] = made.add(f"delay_{flow.names[0]}", node, flow)
        made.lead(Flow((known[origin, delay],), flow.shape), edge[1])
    return made, expected
