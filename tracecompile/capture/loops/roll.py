"""Rolls the trace of a whole sequence up into one step.

Every operation has a place in the user's code. A place that is visited once per time step belongs to the loop, and its
n-th visit to step n; so a trace falls into steps without any search for patterns. The last step is the template: each
of its operands is a value of the same step, of an earlier one (a state), of before the loop, or the t-th slice of a
sequence; and it has to be the same at every step.
"""

from __future__ import annotations

import operator
from collections.abc import Iterable
from itertools import pairwise
from typing import Any

from torch import fx

from tracecompile.capture.loops.loop_body import Loop, Past, Site, body_changes, leaves_of
from tracecompile.capture.loops.slices import Slice, slice_at_every_step
from tracecompile.operations.cone import cone


class Roller:
    """Reads the body of the loop off its last step and checks it against all the others."""

    def __init__(self, loop: Loop) -> None:
        self.loop = loop
        self.live: set[Site] = set()
        self.following: dict[Past, Past | None] = {}
        self.operands: dict[tuple[Site, int], Past] = {}
        self.slices: dict[Site, Slice] = {}
        self.held: set[Site] = set()
        """Sites of some steps only that go on from their own last visit, however many steps ago that was."""

    def roll(self, wanted: Iterable[Site]) -> None:
        """Classifies every operand of the wanted sites and of what they need, in any step."""
        waiting = list(wanted)
        while waiting:
            site = waiting.pop()
            if site in self.live:
                continue
            self.live.add(site)
            template = self.loop.template(site)
            item = slice_at_every_step(self.loop, site)
            if item is not None:
                self.slices[site] = item
                continue
            slots = list(leaves_of((template.args, template.kwargs)))
            self._check(site, template, slots)
            waiting += [
                self.loop.when[slot][1] for slot in slots if isinstance(slot, fx.Node) and slot in self.loop.when
            ]
        self._merge()

    def body(self) -> list[Site]:
        """Returns the sites that the step computes, in the user's order."""
        return [site for site in self.loop.body if site in self.live]

    def _merge(self) -> None:
        """Lets a state without a visible start share the start that another reader of it shows."""
        known = {(past.site, past.distance): past for past in self.following if past.initial is not None}
        for key, past in self.operands.items():
            if past.initial is None and (past.site, past.distance) in known:
                self.operands[key] = known[past.site, past.distance]

    def past(self, site: Site, position: int) -> Past | None:
        """Returns the state that an operand reads, if it reads one."""
        return self.operands.get((site, position))

    def _check(self, site: Site, template: fx.Node, slots: list[Any]) -> None:
        last = self.loop.last(site)
        rows = []
        for step in range(self.loop.steps):
            node = self.loop.at(site, step)
            rows.append(list(leaves_of((node.args, node.kwargs))) if node is not None else None)
        if rows[0] is None:
            self._turned(site, template, rows)
        for step, row in enumerate(rows):
            if row is not None and len(row) != len(slots):
                self._differs(template, step)
                rows[step] = None
        for position, slot in enumerate(slots):
            source = self.loop.when.get(slot) if isinstance(slot, fx.Node) else None
            column = [row[position] if row is not None else None for row in rows]
            if source is None:
                self._check_constant(site, template, slot, column, rows)
            elif source[1] == site and site in self.loop.sometimes:
                self._hold(site, template, column)
            elif source[1] in self.loop.sometimes and source[0] != last:
                raise body_changes(template, "runs in some time steps only")
            elif source[0] > last or source[0] < 0:
                raise body_changes(template, "reads the future")
            else:
                self._check_source(site, template, position, (last - source[0], source[1]), column, rows)

    def _turned(self, site: Site, template: fx.Node, rows: list[Any]) -> None:
        """Turns a sum around that Python begins the other way round: ``0 + z`` is ``z + 0`` to a tensor."""
        first = next(row for row in rows if row is not None)
        numbers = [place for place, leaf in enumerate(first) if isinstance(leaf, (int, float))]
        own = [
            place for place, leaf in enumerate(leaves_of((template.args, template.kwargs))) if self._is_own(leaf, site)
        ]
        if template.target is operator.add and len(numbers) == len(own) == 1:
            (one,), (other,) = numbers, own
            first[one], first[other] = first[other], first[one]

    def _is_own(self, leaf: Any, site: Site) -> bool:
        return isinstance(leaf, fx.Node) and self.loop.when.get(leaf, (0, None))[1] == site

    def _hold(self, site: Site, template: fx.Node, column: list[Any]) -> None:
        """Notes a site that goes on from its own last visit, however many steps ago that was."""
        visited = self.loop.chosen(site)
        for before, step in pairwise(visited):
            if column[step] is not self.loop.at(site, before):
                raise body_changes(template, "runs in some time steps only")
        self.held.add(site)

    def _check_constant(self, site: Site, template: fx.Node, slot: Any, column: list[Any], rows: list[Any]) -> None:
        for step in range(self.loop.steps):
            if rows[step] is None:
                continue
            if not same_constant(column[step], slot):
                numbers = not isinstance(slot, fx.Node)
                if step == 0 and not numbers:
                    self.loop.irregular = True
                    continue
                if step == 0 and self._first_only(column, slot):
                    self.loop.irregular = True
                    continue
                self._refuse(self.loop.at(site, step) or template, [slot, *column])

    def _first_only(self, column: list[Any], slot: Any) -> bool:
        return isinstance(column[0], fx.Node) and all(same_constant(other, slot) for other in column[1:])

    def _check_source(
        self, site: Site, template: fx.Node, position: int, source: tuple[int, Site], column: list[Any], rows: list[Any]
    ) -> None:
        distance, origin = source
        initials: list[Any] = []
        for step in range(self.loop.steps):
            if rows[step] is None:
                if step < distance:
                    initials.append(None)
                continue
            found = self.loop.when.get(column[step]) if isinstance(column[step], fx.Node) else None
            if step < distance:
                if found is not None and step > 0 and found[0] == 0:
                    self.loop.irregular = True
                initials.append(column[step])
            elif found != (step - distance, origin):
                if step == distance:
                    self.loop.irregular = True
                else:
                    self._refuse(template, column)
        if distance > 0:
            self._remember(site, position, origin, distance, initials)

    def _remember(self, site: Site, position: int, origin: Site, distance: int, initials: list[Any]) -> None:
        """Notes a state; at distance d it is the end of a chain of d states."""
        for number, initial in enumerate(initials):
            if isinstance(initial, fx.Node) and initial in self.loop.when:
                initials[number] = None
                self.loop.irregular = True
        chain = [Past(origin, distance - step, initials[step]) for step in range(distance)]
        for past, successor in zip(chain, [*chain[1:], None], strict=True):
            self.following.setdefault(past, successor)
        self.operands[site, position] = chain[0]
        if any(not isinstance(initial, fx.Node) for initial in initials):
            self.loop.irregular = True

    def _differs(self, template: fx.Node, step: int) -> None:
        """Lets the first step differ, to be checked by value; refuses any other."""
        if step > 0:
            raise body_changes(template, "reads other values than at the step before")
        self.loop.irregular = True

    def _refuse(self, template: fx.Node, operands: list[Any]) -> None:
        """Refuses an operand that differs between steps, at the line of what runs in some steps only, if any."""
        nodes = [operand for operand in operands if isinstance(operand, fx.Node)]
        for node in nodes:
            place = self.loop.when.get(node)
            if place is not None and place[1] in self.loop.sometimes:
                raise body_changes(node, "runs in some time steps only")
            if place is None and cone([node]) & self.loop.when.keys():
                raise body_changes(node, "runs in some time steps only")
        if nodes:
            raise body_changes(template, "reads other values than at the step before")
        raise body_changes(template, "computes with a value that depends on the step number")


def same_constant(first: Any, second: Any) -> bool:
    """Compares two operands that are not values of the loop."""
    if isinstance(first, fx.Node) or isinstance(second, fx.Node):
        return first is second or same_source(first, second)
    return type(first) is type(second) and bool(first == second)


def same_source(first: Any, second: Any) -> bool:
    """Tells whether two nodes before the loop are one parameter, buffer or size."""
    if not isinstance(first, fx.Node) or not isinstance(second, fx.Node):
        return False
    return first.op == second.op == "get_attr" and first.target == second.target
