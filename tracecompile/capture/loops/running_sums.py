"""Finds states that only add up what the steps give, which the runtime can collect by itself."""

from __future__ import annotations

import operator
from typing import Any

import torch
from torch import fx

from tracecompile.capture.loops.loop_body import Loop, Site, leaves_of
from tracecompile.capture.loops.roll import Roller


def find_sums(loop: Loop, roller: Roller, frontier: list[fx.Node]) -> dict[Site, Site]:
    """Finds the states that only add up, from zero, what the step gives: the runtime collects those."""
    sums: dict[Site, Site] = {}
    last = loop.steps - 1
    for site in roller.body():
        node = loop.template(site)
        if node.target is not operator.add or site in roller.slices or len(node.args) != 2:
            continue
        pasts = [roller.past(site, position) for position, _ in enumerate(leaves_of((node.args, node.kwargs)))]
        own = [past for past in pasts if past is not None]
        others = [arg for arg in node.args if isinstance(arg, fx.Node) and loop.when.get(arg, (-1, None))[0] == last]
        if len(own) != 1 or own[0].site != site or own[0].distance != 1 or len(others) != 1:
            continue
        readers = {
            loop.when[user][1] for visit in loop.visits[site] if visit for user in visit.users if user in loop.when
        }
        if readers & roller.live != {site} or any(
            loop.when[one] != (last, site) for one in frontier if loop.when[one][1] == site
        ):
            continue
        if starts_at_zero(own[0].initial, node, others[0]):
            sums[site] = loop.when[others[0]][1]
    return sums


def starts_at_zero(initial: Any, total: fx.Node, added: fx.Node) -> bool:
    """Tells whether a running sum starts as nothing: adding the first value to it gives that value."""
    value, first = total.meta["val"], added.meta["val"]
    if value.shape != first.shape or value.dtype != first.dtype:
        return False
    if not isinstance(initial, fx.Node):
        return initial is None or initial == 0
    start = initial.meta["val"]
    names = ("zeros", "zeros_like", "new_zeros")
    name = initial.target if isinstance(initial.target, str) else getattr(initial.target, "__name__", "")
    return name in names and isinstance(start, torch.Tensor) and start.dtype == value.dtype
