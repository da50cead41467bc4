"""Divides a tape into one for each level: what a level reads of those before it is an argument of its own."""

from __future__ import annotations

import operator
from collections.abc import Sequence
from dataclasses import replace
from typing import Any

import torch
from torch import Tensor, fx, nn
from torch.utils import _pytree as pytree

from tracecompile.capture.layerwise.layout import Layout
from tracecompile.capture.layerwise.stacks import spell_as_stacks
from tracecompile.capture.layerwise.stepwise import FEWEST_STEPS
from tracecompile.capture.layerwise.whole import LAYOUT, OF_A_LOOP, WholeSequences
from tracecompile.capture.loops.histories import ROWS
from tracecompile.capture.loops.lengths import TimeSource
from tracecompile.capture.loops.places import place_key, visits_of
from tracecompile.capture.segments.levels import Levels
from tracecompile.capture.segments.piece import STEPS, Key, Segment
from tracecompile.capture.tracing.tape import Tape
from tracecompile.errors import UnrollableLoop


def divided(
    tapes: Sequence[Tape], root: nn.Module, steps: int, source: TimeSource, handed_on: tuple[str, ...]
) -> list[tuple[Segment, ...]]:
    """Returns for every level of the traces of one model its tapes; the tapes themselves where there is one level.

    Args:
        tapes: Of some number of steps, and of one more; or of the number of steps that the model fixes alone.
        root: The copy of the model that was traced.
        steps: How many the first has.
        source: What says so.
        handed_on: States that the next call begins with: the last level hands them out.

    Raises:
        UnrollableLoop: A level reads nothing that has time steps.
    """
    found = []
    for more, tape in enumerate(tapes):
        levels = _levels(tape, root, steps + more, source)
        if levels is None:
            return [tuple(Segment(each, source, is_whole=True) for each in tapes)]
        is_fixed = len(tapes) == 1
        segments = _Division(tape, levels, source, handed_on, is_fixed).segments()
        if tape.again is not None and handed_on:
            of_next = _levels(tape.again, root, steps + more, source)
            assert of_next is not None
            again = _Division(tape.again, of_next, source, handed_on, is_fixed).segments()
            for one, following in zip(segments, again, strict=True):
                one.tape.again = following.tape
        found.append(segments)
    return list(zip(*found, strict=True))


def _levels(tape: Tape, root: nn.Module, steps: int, source: TimeSource) -> Levels | None:
    """Returns the levels of a tape, None where there is one alone."""
    if steps < FEWEST_STEPS:
        return None
    spell_as_stacks(tape, steps)
    sequences = WholeSequences(tape, root, steps, source.axis)
    sequences.find()
    levels = Levels(tape, sequences)
    return levels if levels.count > 1 else None


class _Division:
    def __init__(
        self, tape: Tape, levels: Levels, source: TimeSource, handed_on: tuple[str, ...], is_fixed: bool
    ) -> None:
        self.tape, self.levels, self.source, self.handed_on = tape, levels, source, handed_on
        self.is_fixed = is_fixed
        self.found, self.inside = levels.sequences.found, levels.sequences.inside
        self.steps = levels.sequences.steps
        self.visits = visits_of(tape)
        self.parts = [_Part(self, number) for number in range(levels.count)]

    def segments(self) -> list[Segment]:
        """Returns the tapes."""
        for node in self.tape.graph.nodes:
            if node in self.levels.of:
                self.parts[self.levels.of[node]].copy(node)
        last = self.parts[-1]
        result = pytree.tree_map(last.read, self.tape.result)
        for name in self.handed_on:
            last.read(self.tape.attributes[name])
        return [part.finished(result if part is last else None) for part in self.parts]

    def given(self, node: fx.Node, reader: int) -> Key | None:
        """Returns as what a level takes a node of another one; None where it computes it once more: a size."""
        level = self.levels.of.get(node)
        if level is not None and not isinstance(node.meta["val"], Tensor) and self._of_arguments(node):
            return None
        key: Key = node
        if level is not None and node in self.inside:
            visits = self.visits.get(place_key(node), [])
            read = [one for one in visits if any(self.levels.of.get(user, level) >= reader for user in one.users)]
            if len(visits) == self.steps and len(read) > 2:
                key = (STEPS, place_key(node))
        if level is not None:
            self.parts[level].gives[key] = None
        return key

    def taken_apart(self, node: fx.Node) -> list[fx.Node]:
        """Returns the nodes that pick the values of one that has several: tensors alone are handed on."""
        level = self.levels.of[node]
        picks = []
        for index, value in enumerate(node.meta["val"]):
            with self.tape.graph.inserting_after(node):
                pick = self.tape.graph.call_function(operator.getitem, (node, index))
            pick.meta.update(val=value, where=node.meta.get("where"), place=(node.meta["place"], "part", index))
            self.levels.of[pick] = level
            self.parts[level].copy(pick)
            picks.append(pick)
        return picks

    def _of_arguments(self, node: fx.Node) -> bool:
        """Tells whether a number is computed of the sizes of arguments alone."""
        return all(
            source.op == "placeholder" or (not isinstance(source.meta["val"], Tensor) and self._of_arguments(source))
            for source in node.all_input_nodes
        )


class _Part:
    """One level while it is written."""

    def __init__(self, whole: _Division, number: int) -> None:
        self.whole, self.number = whole, number
        self.graph = fx.Graph()
        self.copies: dict[fx.Node, fx.Node] = {}
        self.taken: dict[Key, fx.Node] = {}
        self.gives: dict[Key, None] = {}

    def copy(self, node: fx.Node) -> fx.Node:
        """Writes a node of the tape."""
        args, kwargs = fx.map_arg((node.args, node.kwargs), self.read)
        made = self.graph.create_node(node.op, node.target, args, kwargs, name=node.name)
        made.meta.update(node.meta)
        if ROWS in made.meta:
            rows, axis = made.meta[ROWS]
            made.meta[ROWS] = tuple(map(self.read, rows)), axis
        self.copies[node] = made
        return made

    def read(self, value: Any) -> Any:
        """Returns what stands for a node of the tape in this level, and anything else as it is."""
        if not isinstance(value, fx.Node):
            return value
        if value not in self.copies:
            level = self.whole.levels.of.get(value)
            if isinstance(value.meta["val"], (tuple, list)) and level not in (None, self.number):
                return tuple(map(self.read, self.whole.taken_apart(value)))
            own = value.op == "get_attr" or level == self.number
            key = None if own else self.whole.given(value, self.number)
            self.copies[value] = self.copy(value) if key is None else self._of(value, key)
        return self.copies[value]

    def _of(self, node: fx.Node, key: Key) -> fx.Node:
        if isinstance(key, fx.Node):
            layout = self.whole.found[node].layout if node in self.whole.found else None
            return self._taken(key, node.name, node.meta["val"], layout, node.meta.get("where"))
        rows = self.whole.visits[key[1]]
        value = torch.stack([row.meta["val"] for row in rows])
        steps = self._taken(key, f"{node.name}_steps", value, Layout(0, len(rows)), node.meta.get("where"))
        made = self.graph.call_method("select", (steps, 0, rows.index(node)))
        made.meta.update(val=node.meta["val"], where=node.meta.get("where"), place=(node.meta["place"], "handed on"))
        return made

    def _taken(self, key: Key, name: str, value: Any, layout: Layout | None, where: Any) -> fx.Node:
        if key not in self.taken:
            last = next(reversed(self.taken.values()), None)
            with self.graph.inserting_before(None) if last is None else self.graph.inserting_after(last):
                made = self.taken[key] = self.graph.placeholder(name)
            made.meta.update({"val": value, "where": where, "place": None, LAYOUT: layout})
            made.meta[OF_A_LOOP] = not isinstance(key, fx.Node) or key in self.whole.levels.of
        return self.taken[key]

    def _given(self, key: Key) -> fx.Node:
        """Returns what another level reads of this one."""
        if isinstance(key, fx.Node):
            return self.copies[key]
        rows = self.whole.visits[key[1]]
        made = self.graph.call_function(torch.stack, (tuple(self.copies[row] for row in rows), 0))
        made.meta.update(val=torch.stack([row.meta["val"] for row in rows]), where=rows[0].meta.get("where"))
        made.meta["place"] = (rows[0].meta["place"], "all steps")
        return made

    def finished(self, result: Any) -> Segment:
        """Returns the tape of the level, with its result where it is the last one."""
        whole = self.whole.tape
        is_last = result is not None
        statistics = whole.statistics if is_last else ()
        attributes = {
            name: self.copies[node]
            for name, node in whole.attributes.items()
            if isinstance(node, fx.Node) and self.whole.levels.of.get(node) == self.number
        }
        takes = self._in_order()
        tape = replace(
            whole,
            graph=self.graph,
            result=result if is_last else tuple(map(self._given, self.gives)),
            attributes=attributes,
            written=(*(name for name in whole.states_written() if name in attributes), *statistics),
            inputs=[self.taken[key] for key in takes],
            states={},
            again=None,
            conditions=[],
            reads_mode=True,
            statistics=statistics,
        )
        return Segment(tape, self._source(takes), takes, [] if is_last else list(self.gives))

    def _in_order(self) -> list[Key]:
        """Returns what it takes, a tensor first that has its time steps along an axis of their own."""

        def rank(key: Key) -> int:
            layout = self.taken[key].meta[LAYOUT]
            return 0 if layout is not None and not layout.merged else 1

        return sorted(self.taken, key=rank)

    def _source(self, takes: list[Key]) -> TimeSource:
        layout = self.taken[takes[0]].meta[LAYOUT] if takes else None
        if layout is not None and not layout.merged:
            return TimeSource(layout.axis)
        if self.whole.is_fixed:
            return TimeSource(None)
        number = self.whole.source.number
        clock = None if number is None else self.whole.tape.inputs[number]
        if clock is None:
            where = next((node.meta.get("where") for node in self.graph.nodes if node.meta.get("where")), None)
            raise UnrollableLoop(
                "Nothing that this loop reads says how many time steps it has.",
                "Let it read the sequence that comes before it along its time axis.",
                where,
            )
        if clock not in self.taken:
            self._taken(clock, clock.name, clock.meta["val"], None, None)
            takes.append(clock)
        return TimeSource(None, takes.index(clock))
