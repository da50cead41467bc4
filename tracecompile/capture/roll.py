"""Rolls the trace of a whole sequence up into one step.

Every operation has a place in the user's code. A place that is visited once per time step belongs to the loop, and its
n-th visit to step n; so a trace falls into steps without any search for patterns. The last step is the template: each
of its operands is a value of the same step, of an earlier one (a state), of before the loop, or the t-th slice of a
sequence; and it has to be the same at every step.
"""

from __future__ import annotations

import operator
from collections.abc import Iterable, Iterator
from dataclasses import dataclass, field
from typing import Any

import torch
from torch import fx

from tracecompile.capture.build import cone
from tracecompile.capture.functionalize import set_item
from tracecompile.capture.tracer import Tape
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


class Roller:
    """Reads the body of the loop off its last step and checks it against all the others."""

    def __init__(self, loop: Loop) -> None:
        self.loop = loop
        self.live: set[Site] = set()
        self.following: dict[Past, Past | None] = {}
        self.operands: dict[tuple[Site, int], Past] = {}
        self.slices: dict[Site, Slice] = {}
        self.writes: dict[Site, int] = {}

    def roll(self, wanted: Iterable[Site]) -> None:
        """Classifies every operand of the wanted sites and of what they need, in any step."""
        waiting = list(wanted)
        while waiting:
            site = waiting.pop()
            if site in self.live:
                continue
            self.live.add(site)
            template = self.loop.template(site)
            if self._is_slice(site, template):
                continue
            if self._is_write(site, template):
                waiting.append(self.loop.when[template.args[2]][1])  # type: ignore[index]
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
        last = self.loop.steps - 1
        rows = []
        for step in range(self.loop.steps):
            node = self.loop.at(site, step)
            rows.append(list(leaves_of((node.args, node.kwargs))) if node is not None else None)
        for step, row in enumerate(rows):
            if row is not None and len(row) != len(slots):
                self._differs(template, step)
                rows[step] = None
        for position, slot in enumerate(slots):
            source = self.loop.when.get(slot) if isinstance(slot, fx.Node) else None
            column = [row[position] if row is not None else None for row in rows]
            if source is None:
                self._check_constant(site, template, slot, column, rows)
            elif source[0] > last or source[0] < 0:
                raise body_changes(template, "reads the future")
            else:
                self._check_source(site, template, position, (last - source[0], source[1]), column, rows)

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
                self._refuse(self.loop.at(site, step) or template, (slot, column[step]))

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
                    self._refuse(template, (column[step],))
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

    def _refuse(self, template: fx.Node, operands: tuple[Any, ...]) -> None:
        """Refuses an operand that differs between steps, at the line of what runs in some steps only, if any."""
        for operand in operands:
            if (
                isinstance(operand, fx.Node)
                and operand not in self.loop.when
                and cone([operand]) & self.loop.when.keys()
            ):
                raise body_changes(operand, "runs in some time steps only")
        if any(isinstance(operand, fx.Node) for operand in operands):
            raise body_changes(template, "reads other values than at the step before")
        raise body_changes(template, "computes with a value that depends on the step number")

    def _is_slice(self, site: Site, template: fx.Node) -> bool:
        found = sliced_at(template, self.loop.steps - 1)
        if found is None or found.sequence in self.loop.when:
            return False
        for step in range(self.loop.steps):
            node = self.loop.at(site, step)
            if node is None or sliced_at(node, step) != found:
                return False
        self.slices[site] = found
        return True

    def _is_write(self, site: Site, template: fx.Node) -> bool:
        """Recognises ``out[t] = value`` into a tensor made before the loop."""
        if template.target is not set_item:
            return False
        dim = axis_of_index(template.args[1], self.loop.steps - 1)
        before = self.loop.at(site, self.loop.steps - 2)
        first = self.loop.at(site, 0)
        if (
            dim is None
            or before is None
            or first is None
            or template.args[0] is not before
            or first.args[0] in self.loop.when
        ):
            return False
        value = template.args[2]
        shape = list(template.meta["val"].shape)
        if (
            not isinstance(value, fx.Node)
            or shape.pop(dim) != self.loop.steps
            or list(value.meta["val"].shape) != shape
        ):
            return False
        for step in range(self.loop.steps):
            node = self.loop.at(site, step)
            if node is None or axis_of_index(node.args[1], step) != dim:
                return False
            source = self.loop.when.get(node.args[2])  # type: ignore[arg-type]
            if source is None or source[0] != step:
                return False
        self.writes[site] = dim
        return True


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


def sliced_at(node: fx.Node, step: int) -> Slice | None:
    """Returns the sequence of which a node is the slice at a step, the axis counted from the front."""
    if node.target is operator.getitem and isinstance(node.args[0], fx.Node):
        source = node.args[0]
        if isinstance(source.meta["val"], (tuple, list)):
            return unbound(source) if node.args[1] == step and type(node.args[1]) is int else None
        dim = axis_of_index(node.args[1], step)
        kept = axis_of_index(node.args[1], slice(step, step + 1))
        if dim is None and kept is None:
            return None
        return Slice(source, dim) if dim is not None else Slice(source, kept or 0, keep=True)
    if node.target in ("select", torch.select) and len(node.args) == 3 and node.args[2] == step:
        sequence = node.args[0]
        assert isinstance(sequence, fx.Node)
        return Slice(sequence, int(node.args[1]) % sequence.meta["val"].dim())  # type: ignore[arg-type]
    return None


def unbound(source: fx.Node) -> Slice | None:
    """Returns the sequence that ``unbind``, or ``split`` into single steps, takes apart."""
    name = source.target if isinstance(source.target, str) else getattr(source.target, "__name__", "")
    whole = source.args[0] if source.args else None
    if name not in ("unbind", "split", "chunk") or not isinstance(whole, fx.Node):
        return None
    place = 1 if name == "unbind" else 2
    dim: Any = source.args[place] if len(source.args) > place else source.kwargs.get("dim", 0)
    dim = dim % whole.meta["val"].dim()
    if name != "unbind" and len(source.meta["val"]) != whole.meta["val"].shape[dim]:
        return None
    return Slice(whole, dim, keep=name != "unbind")


def axis_of_index(index: Any, step: int | slice) -> int | None:
    """Returns the axis along which an index picks the step, if it takes everything along the others."""
    items = index if isinstance(index, tuple) else (index,)
    axis, before = None, 0
    for position, item in enumerate(items):
        if type(item) is type(step) and item == step and axis is None:
            axis, before = position, position
        elif item is Ellipsis and axis is not None:
            continue
        elif not (isinstance(item, slice) and item == slice(None)):
            return None
    return before if axis is not None else None


def first_line(loop: Loop) -> SourceLine | None:
    """Returns the line of the loop's first operation."""
    return loop.template(loop.body[0]).meta.get("where") if loop.body else None
