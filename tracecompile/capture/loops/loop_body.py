"""The loop as the trace shows it: its operations sorted into steps."""

from __future__ import annotations

from collections.abc import Iterator
from dataclasses import dataclass, field
from typing import Any

from torch import fx

from tracecompile.capture.tracing.tape import Tape
from tracecompile.errors import SourceLine, UnrollableLoop

Site = tuple[Any, int]


@dataclass(frozen=True)
class Past:
    """A value that the loop's body reads from an earlier step.

    Attributes:
        site: What was computed.
        distance: How many steps ago.
        initial: What stands for it before the first step: a node, a number, or None where the first step has no such
            place.
    """

    site: Site
    distance: int
    initial: Any


@dataclass(frozen=True)
class Slice:
    """The slice of a sequence that belongs to the step.

    Attributes:
        sequence: The whole, a node before the loop.
        dim: Its time axis.
        keep: Whether the slice keeps that axis with length 1.
    """

    sequence: fx.Node
    dim: int
    keep: bool = False


@dataclass
class Loop:
    """A trace, sorted into steps.

    Attributes:
        steps: Number of steps.
        body: Sites in the order of the last step.
        visits: Node of each (site, step); None where the first step lacks it.
        when: Step and site of each node of the loop.
        irregular: Whether the first step differs from the others, so that its rolled form has to be checked by value.
    """

    tape: Tape
    steps: int
    body: list[Site] = field(default_factory=list)
    visits: dict[Site, list[fx.Node | None]] = field(default_factory=dict)
    when: dict[fx.Node, tuple[int, Site]] = field(default_factory=dict)
    irregular: bool = False

    def template(self, site: Site) -> fx.Node:
        """Returns a site's node in the last step."""
        node = self.visits[site][-1]
        assert node is not None
        return node

    def at(self, site: Site, step: int) -> fx.Node | None:
        """Returns a site's node in some step."""
        return self.visits[site][step]


def place_key(node: fx.Node) -> Any:
    """Returns what the visits of one expression share; None for a node that belongs to no expression."""
    place = node.meta.get("place")
    return None if place is None or node.op in ("placeholder", "get_attr") else (place, node.op, str(node.target))


def visit_counts(tape: Tape) -> dict[Any, int]:
    """Counts the visits of every place."""
    counts: dict[Any, int] = {}
    for node in tape.graph.nodes:
        key = place_key(node)
        if key is not None:
            counts[key] = counts.get(key, 0) + 1
    return counts


def sort_into_steps(tape: Tape, steps: int, per_step: dict[Any, int]) -> Loop:
    """Assigns every visit of a place in the loop to its step.

    Args:
        per_step: How often each place is visited in one step; absent or 0 outside the loop.
    """
    loop = Loop(tape, steps)
    counts = visit_counts(tape)
    seen: dict[Any, int] = {}
    for node in tape.graph.nodes:
        key = place_key(node)
        times = per_step.get(key, 0)
        if not times:
            continue
        missing = steps * times - counts[key]
        if missing not in (0, times, -times):
            raise body_changes(node, "runs in some time steps only")
        turn = seen[key] = seen.get(key, -1) + 1
        step, site = turn // times + missing // times, (key, turn % times)
        if step < 0:
            # The condition of a while loop is looked at once more than its body runs.
            continue
        loop.when[node] = (step, site)
        loop.visits.setdefault(site, [None] * steps)[step] = node
        loop.irregular |= missing > 0
        if step == steps - 1:
            loop.body.append(site)
    return loop


def body_changes(node: fx.Node, how: str) -> UnrollableLoop:
    """Makes the refusal of a loop whose body depends on time."""
    return UnrollableLoop(
        f"The body of the time loop is not the same at every step: this {how}.",
        "Write a body that does not depend on the step number, with what changes over time as an input.",
        node.meta.get("where"),
    )


def leaves_of(argument: Any) -> Iterator[Any]:
    """Yields nodes and constants of an argument in a fixed order."""
    if isinstance(argument, (tuple, list)):
        yield ("length", len(argument))
        for item in argument:
            yield from leaves_of(item)
    elif isinstance(argument, dict):
        for key in argument:
            yield ("key", key)
            yield from leaves_of(argument[key])
    elif isinstance(argument, slice):
        yield from leaves_of((argument.start, argument.stop, argument.step))
    else:
        yield argument


def first_line(loop: Loop) -> SourceLine | None:
    """Returns the line of the loop's first operation."""
    return loop.template(loop.body[0]).meta.get("where") if loop.body else None
