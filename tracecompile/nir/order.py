"""In which order the nodes of a NIR graph are computed in one time step, and what they read from the step before."""

from __future__ import annotations

from collections.abc import Iterable, Sequence
from typing import Any

from tracecompile.errors import UnsupportedOperation

Edge = tuple[str, str]


def flattened(graph: Any, prefix: str = "") -> tuple[dict[str, Any], list[Edge]]:
    """Returns the nodes and edges of a graph with its subgraphs put in place; their nodes are named "graph.node"."""
    nodes: dict[str, Any] = {}
    edges = [(prefix + source, prefix + target) for source, target in graph.edges]
    for name, node in graph.nodes.items():
        if type(node).__name__ != "NIRGraph":
            nodes[prefix + name] = node
            continue
        inner, wires = flattened(node, f"{prefix}{name}.")
        own = {key: type(found).__name__ for key, found in inner.items() if key.rpartition(".")[0] == prefix + name}
        ports = {kind: [key for key, found in own.items() if found == kind] for kind in ("Input", "Output")}
        if any(len(found) != 1 for found in ports.values()):
            raise UnsupportedOperation(
                f"The subgraph {prefix + name} has {len(ports['Input'])} inputs and {len(ports['Output'])} outputs.",
                "Give a subgraph one Input and one Output.",
            )
        (entry,), (leave,) = ports["Input"], ports["Output"]
        edges = [
            (leave if source == prefix + name else source, entry if target == prefix + name else target)
            for source, target in edges
        ]
        nodes |= inner
        edges += wires
    return nodes, edges


def delayed_edges(nodes: Sequence[str], edges: Sequence[Edge], stateful: set[str], delays: set[str]) -> set[Edge]:
    """Returns the edges that carry the value of the step before, so that the others have no cycle.

    A cycle is cut at the last neuron before it closes, as seen from the inputs: a recurrent weight reads the spikes of
    the step before. What goes into a Delay is read at a later step anyway.

    Raises:
        UnsupportedOperation: A cycle has no neuron.
    """
    cut = {edge for edge in edges if edge[1] in delays}
    while True:
        cycle = _first_cycle(nodes, [edge for edge in edges if edge not in cut])
        if cycle is None:
            return cut - {edge for edge in edges if edge[1] in delays}
        neuron = next((place for place in reversed(range(len(cycle))) if cycle[place] in stateful), None)
        if neuron is None:
            raise UnsupportedOperation(
                f"The nodes {', '.join(cycle)} of the NIR graph form a cycle without a neuron.",
                "Put a neuron or a Delay into every cycle.",
            )
        cut.add((cycle[neuron], cycle[(neuron + 1) % len(cycle)]))


def _first_cycle(nodes: Sequence[str], edges: Sequence[Edge]) -> list[str] | None:
    """Returns the nodes of a cycle, from the one that is met first on the way from the inputs."""
    following = {name: [target for source, target in edges if source == name] for name in nodes}
    entered = {target for _, target in edges}
    done: set[str] = set()
    for start in [*(name for name in nodes if name not in entered), *nodes]:
        path, waiting = [start], [iter(following[start])]
        while path and start not in done:
            target = next(waiting[-1], None)
            if target is None:
                done.add(path.pop())
                waiting.pop()
            elif target in path:
                return path[path.index(target) :]
            elif target not in done:
                path.append(target)
                waiting.append(iter(following[target]))
    return None


def ordered(nodes: Iterable[str], edges: Sequence[Edge]) -> list[str]:
    """Returns the nodes so that each comes after what it reads; the edges have no cycle."""
    missing = {name: {source for source, target in edges if target == name} for name in nodes}
    result: list[str] = []
    while missing:
        ready = next(name for name, sources in missing.items() if not sources)
        result.append(ready)
        del missing[ready]
        for sources in missing.values():
            sources.discard(ready)
    return result
