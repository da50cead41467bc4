"""Places that a condition on the step number leaves out of some steps: in which steps they are visited.

How often such a place is visited says nothing about when. What runs in every step does: an operation between two of the
same step belongs to it.
"""

from __future__ import annotations

from collections.abc import Iterator, Mapping
from dataclasses import dataclass
from typing import Any

from torch import fx

from tracecompile.capture.loops.places import place_key, written_place
from tracecompile.capture.tracing.tape import Tape

Between = tuple[fx.Node | None, fx.Node | None]
"""What runs in every step, before and after an operation."""


@dataclass(frozen=True)
class Located:
    """A place that is visited within the loop in some steps.

    Attributes:
        key: Of the place.
        steps: Step of each of its nodes.
    """

    key: Any
    steps: Mapping[fx.Node, int]


def locate(tape: Tape, when: Mapping[fx.Node, tuple[int, Any]], steps: int) -> Iterator[Located]:
    """Yields the places within the loop that are not in ``when``, the nodes of every step.

    What is visited in the first step alone is left out: it makes what the later steps have, and belongs to before the
    loop.
    """
    found: dict[Any, dict[fx.Node, Between]] = {}
    nodes = [node for node in tape.graph.nodes if place_key(node) is not None]
    following = _following(nodes, when)
    before: fx.Node | None = None
    for node, after in zip(nodes, following, strict=True):
        if node in when:
            before = node
        else:
            found.setdefault(place_key(node), {})[node] = (before, after)
    for key, visits in found.items():
        inside = [_step(node, between, when) for node, between in visits.items()]
        if all(step is None for step in inside):
            continue
        # Nothing follows what the last step does last: that it belongs to the loop is seen in an earlier step.
        located = {
            node: _at_the_end(between, when, steps) if step is None else step
            for (node, between), step in zip(visits.items(), inside, strict=True)
        }
        known = {node: step for node, step in located.items() if step is not None}
        if len(known) == len(located) and set(known.values()) != {0}:
            yield Located(key, known)


def _following(nodes: list[fx.Node], when: Mapping[fx.Node, Any]) -> list[fx.Node | None]:
    """Returns for every node the next one that runs in every step."""
    found: list[fx.Node | None] = []
    after: fx.Node | None = None
    for node in reversed(nodes):
        found.append(after)
        if node in when:
            after = node
    return found[::-1]


def _step(node: fx.Node, between: Between, when: Mapping[fx.Node, tuple[int, Any]]) -> int | None:
    before, after = between
    if before is None or after is None:
        return None
    last, following = when[before][0], when[after][0]
    if last == following:
        return last
    if following != last + 1:
        return None  # between two loops
    return last if _stands_behind(node, before) else following


def _at_the_end(between: Between, when: Mapping[fx.Node, tuple[int, Any]], steps: int) -> int | None:
    before, after = between
    if before is not None and when[before][0] == steps - 1:
        return steps - 1
    return 0 if before is None and after is not None and when[after][0] == 0 else None


def _stands_behind(node: fx.Node, other: fx.Node) -> bool:
    """Tells whether an operation stands behind another in the user's source, where both are called from."""
    one, two = written_place(node), written_place(other)
    if one is None or two is None:
        return True
    for here, there in zip(one.frames, two.frames, strict=False):
        if here != there:
            lines = [(position[0] or 0, position[2] or 0) for position in (here[2], there[2])]
            return lines[0] >= lines[1]
    return True
