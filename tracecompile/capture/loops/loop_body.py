"""The loop as the trace shows it: its operations sorted into steps."""

from __future__ import annotations

from collections.abc import Iterator
from dataclasses import dataclass, field
from typing import Any

from torch import fx

from tracecompile.capture.loops.located import Located, locate
from tracecompile.capture.loops.places import place_key, visit_counts
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


@dataclass
class Loop:
    """A trace, sorted into steps.

    Attributes:
        steps: Number of steps.
        body: Sites in the order of one step.
        visits: Node of each (site, step); None where the site is not visited in that step.
        when: Step and site of each node of the loop.
        sometimes: Sites that a condition on the step number leaves out of some steps.
        irregular: Whether the first step differs from the others, so that its rolled form has to be checked by value.
    """

    tape: Tape
    steps: int
    body: list[Site] = field(default_factory=list)
    visits: dict[Site, list[fx.Node | None]] = field(default_factory=dict)
    when: dict[fx.Node, tuple[int, Site]] = field(default_factory=dict)
    sometimes: set[Site] = field(default_factory=set)
    irregular: bool = False

    def last(self, site: Site) -> int:
        """Returns the last step in which a site is visited."""
        if site not in self.sometimes:
            return self.steps - 1
        return max(step for step, node in enumerate(self.visits[site]) if node is not None)

    def template(self, site: Site) -> fx.Node:
        """Returns a site's node in the last step in which it is visited."""
        node = self.visits[site][self.last(site)]
        assert node is not None
        return node

    def at(self, site: Site, step: int) -> fx.Node | None:
        """Returns a site's node in some step."""
        return self.visits[site][step]

    def chosen(self, site: Site) -> tuple[int, ...]:
        """Returns the steps in which a site is visited."""
        return tuple(step for step, node in enumerate(self.visits[site]) if node is not None)


def sort_into_steps(tape: Tape, steps: int, per_step: dict[Any, int]) -> Loop:
    """Assigns every visit of a place in the loop to its step.

    Args:
        tape: The trace.
        steps: How often the loop comes round in it.
        per_step: How often each place is visited in one step; absent or 0 outside the loop and where that differs.
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
            continue
        turn = seen[key] = seen.get(key, -1) + 1
        step, site = turn // times + missing // times, (key, turn % times)
        if step < 0:
            # The condition of a while loop is looked at once more than its body runs.
            continue
        loop.when[node] = (step, site)
        loop.visits.setdefault(site, [None] * steps)[step] = node
        loop.irregular |= missing > 0
    for located in locate(tape, loop.when, steps):
        _add_sometimes(loop, located)
    loop.body = _in_order(loop)
    return loop


def _add_sometimes(loop: Loop, located: Located) -> None:
    """Adds a place that is visited in some steps only."""
    turns: dict[int, int] = {}
    for node, step in located.steps.items():
        turn = turns[step] = turns.get(step, -1) + 1
        site = (located.key, turn)
        loop.when[node] = (step, site)
        loop.visits.setdefault(site, [None] * loop.steps)[step] = node
        loop.sometimes.add(site)


def _in_order(loop: Loop) -> list[Site]:
    """Returns all sites in the order of the last step; what only runs sometimes follows what it follows there."""
    body: list[Site] = []
    behind: dict[Site | None, list[Site]] = {}
    last = {site: loop.last(site) for site in loop.visits}
    before: dict[int, Site | None] = {}
    for node in loop.tape.graph.nodes:
        if node not in loop.when:
            continue
        step, site = loop.when[node]
        if step == last[site]:
            if site in loop.sometimes:
                behind.setdefault(before.get(step), []).append(site)
            else:
                body.append(site)
        if site not in loop.sometimes:
            before[step] = site
    ordered = list(behind.get(None, []))
    for site in body:
        ordered += [site, *behind.get(site, [])]
    return ordered


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
