"""A first time step that is written before the loop, as the loop's own.

``out = net(x)`` and then ``for _ in range(1, T): out += net(x)`` calls the same code from two lines. What is done in
one call before the loop is what the loop does in each of its own: it is its first step.
"""

from __future__ import annotations

from collections.abc import Iterator
from dataclasses import dataclass, replace
from typing import Any

from torch import fx

from tracecompile.capture.loops.places import visits_of
from tracecompile.capture.tracing.source import Place
from tracecompile.capture.tracing.tape import Tape


@dataclass(frozen=True)
class Call:
    """A call in the user's code, as a frame of a place.

    Attributes:
        outside: The frames around it.
        file, function: Where it stands.
        position: Which stretch of that source it is.
    """

    outside: tuple[Any, ...]
    file: str
    function: str
    position: Any


def join_first_step(tape: Tape) -> None:
    """Gives the operations of a first step before the loop the places of the loop, in place."""
    position = {node: number for number, node in enumerate(tape.graph.nodes)}
    inside: dict[Call, dict[Any, list[fx.Node]]] = {}
    before: dict[Call, dict[Any, fx.Node]] = {}
    for nodes in visits_of(tape).values():
        for call, kind in _calls(nodes[0]):
            if len(nodes) > 1:
                inside.setdefault(call, {})[kind] = nodes
            else:
                before.setdefault(call, {})[kind] = nodes[0]
    for call, first in before.items():
        for other, loop in inside.items():
            if _same_caller(call, other) and first.keys() == loop.keys():
                ahead = all(position[first[kind]] < position[loop[kind][0]] for kind in first)
                if ahead and len({len(nodes) for nodes in loop.values()}) == 1:
                    for kind, node in first.items():
                        node.meta["place"] = loop[kind][0].meta["place"]
                    break


def _same_caller(one: Call, other: Call) -> bool:
    return one != other and replace(one, position=None) == replace(other, position=None)


def _calls(node: fx.Node) -> Iterator[tuple[Call, Any]]:
    """Yields every call that led to an operation, and what identifies the operation within that call.

    The last frame is a call where a module is called there; any other operation may stand on two lines by chance.
    """
    place = node.meta.get("place")
    if not isinstance(place, Place):
        return
    for number, (file, function, stretch) in enumerate(place.frames):
        within = place.frames[number + 1 :]
        if within or node.op == "call_module":
            call = Call(place.frames[:number], file, function, stretch)
            yield call, (within, place.module_path, node.op, str(node.target))
