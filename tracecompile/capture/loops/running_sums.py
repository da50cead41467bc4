"""Finds states that only add up what the steps give, which the runtime can collect by itself."""

from __future__ import annotations

import operator
from dataclasses import dataclass
from typing import Any

import torch
from torch import fx

from tracecompile.capture.loops.collected import chosen_steps
from tracecompile.capture.loops.loop_body import Loop, Site, body_changes, leaves_of
from tracecompile.capture.loops.roll import Roller
from tracecompile.operations import operation_of
from tracecompile.program import ChosenSteps


@dataclass(frozen=True)
class RunningSum:
    """A state that only adds up, from zero, what the step gives.

    Attributes:
        added: What is added.
        chosen: In which steps; None for all.
    """

    added: Site
    chosen: ChosenSteps | None = None


def find_sums(loop: Loop, roller: Roller, frontier: list[fx.Node]) -> dict[Site, RunningSum]:
    """Finds the states that only add up, from zero, what the step gives: the runtime collects those.

    Raises:
        UnrollableLoop: What goes on in some steps only is something else than a sum.
    """
    sums: dict[Site, RunningSum] = {}
    for site in roller.body():
        found = _sum_of(loop, roller, frontier, site)
        if found is not None:
            sums[site] = found
        elif site in roller.held:
            raise body_changes(loop.template(site), "runs in some time steps only")
    return sums


def _sum_of(loop: Loop, roller: Roller, frontier: list[fx.Node], site: Site) -> RunningSum | None:
    node, last = loop.template(site), loop.last(site)
    if node.target is not operator.add or site in roller.slices or len(node.args) != 2:
        return None
    made_now = [arg for arg in node.args if isinstance(arg, fx.Node) and loop.when.get(arg, (-1, site))[0] == last]
    others = [arg for arg in made_now if loop.when[arg][1] != site]
    visited, initial = loop.chosen(site), None
    if site not in roller.held:
        pasts = [roller.past(site, position) for position, _ in enumerate(leaves_of((node.args, node.kwargs)))]
        own = [past for past in pasts if past is not None]
        if len(own) != 1 or own[0].site != site or own[0].distance != 1:
            return None
        initial = own[0].initial
    late = visited[0] > 0 or site in roller.held
    if late:
        initial, before = _start(loop, site, others)
        visited = (*before, *visited)
    if len(others) != 1:
        return None
    readers = {loop.when[user][1] for visit in loop.visits[site] if visit for user in visit.users if user in loop.when}
    if readers & roller.live != {site} and not (site in roller.held and len(loop.chosen(site)) == 1):
        return None
    if any(loop.when[one] != (last, site) for one in frontier if loop.when[one][1] == site):
        return None
    if not starts_at_zero(initial, node, others[0]):
        return None
    chosen = chosen_steps(visited, loop.steps) if late or site in loop.sometimes else None
    return RunningSum(loop.when[others[0]][1], chosen)


def _start(loop: Loop, site: Site, others: list[fx.Node]) -> tuple[Any, tuple[int, ...]]:
    """Returns what a sum goes on from at its first visit, on whichever side of the plus it stands there.

    That may be the first value itself (``total = z if total is None else total + z``), which the sum then takes too.

    Returns:
        What the sum starts as, and the step whose value it starts as instead, if there is one.
    """
    added = {loop.when[other][1] for other in others}
    step = loop.chosen(site)[0]
    first = loop.at(site, step)
    assert first is not None
    places = [(arg, loop.when.get(arg, (0, None))) for arg in first.args]  # type: ignore[arg-type]
    earlier = tuple(at for _, (at, of) in places if of in added and at != step)
    return next((arg for arg, (_, of) in places if of not in added), None), earlier


def starts_at_zero(initial: Any, total: fx.Node, added: fx.Node) -> bool:
    """Tells whether a running sum starts as nothing: adding the first value to it gives that value."""
    value, first = total.meta["val"], added.meta["val"]
    if value.shape != first.shape or value.dtype != first.dtype:
        return False
    if not isinstance(initial, fx.Node):
        return initial is None or initial == 0
    start = initial.meta["val"]
    return operation_of(initial).fill == 0 and isinstance(start, torch.Tensor) and start.dtype == value.dtype
