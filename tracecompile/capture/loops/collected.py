"""Recognises lists that hold one value per time step."""

from __future__ import annotations

from dataclasses import dataclass
from typing import Any

from torch import fx

from tracecompile.capture.loops.loop_body import Loop, Site


@dataclass(frozen=True)
class Collected:
    """A list that holds one value of each of consecutive steps.

    Attributes:
        site: What was computed.
        start: First step.
        stop: One past the last step; None where that is the last of all.
    """

    site: Site
    start: int
    stop: int | None


def collected(loop: Loop, items: Any) -> Collected | None:
    """Recognises a list of one value per step."""
    if not isinstance(items, (list, tuple)) or len(items) < 2 or not all(isinstance(item, fx.Node) for item in items):
        return None
    places = [loop.when.get(item) for item in items]
    if places[-1] is None or places[1] is None:
        return None
    stop, site = places[-1][0] + 1, places[-1][1]
    start = stop - len(items)
    if start < 0:
        return None
    for offset, place in enumerate(places):
        if place != (start + offset, site) and not (start + offset == 0 and loop.at(site, 0) is None):
            return None
    if places[0] != (start, site):
        loop.irregular = True
    return Collected(site, start, None if stop == loop.steps else stop)
