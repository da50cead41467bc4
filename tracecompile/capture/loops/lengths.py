"""Numbers in a trace that are the number of time steps."""

from __future__ import annotations

import operator
from dataclasses import dataclass
from typing import Any

from torch import fx

from tracecompile.capture.loops.places import visits_of
from tracecompile.capture.tracing.tape import Tape


@dataclass(frozen=True)
class TimeSource:
    """What says how many steps a sequence has.

    Attributes:
        axis: Axis of the first tensor argument; None where only a number says it.
        number: Position of a number among the leaves of the arguments; None where only the axis says it.
    """

    axis: int | None
    number: int | None = None

    def clock(self, tape: Tape) -> fx.Node | None:
        """Returns the node of the number, where there is one."""
        return None if self.number is None else tape.inputs[self.number]


def make_lengths_symbolic(
    tapes: tuple[Tape, Tape], lengths: tuple[int, int], growth: dict[Any, int], source: TimeSource
) -> None:
    """Replaces integers that grow with the example's length by the length of the input.

    A counter after ``while t < x.shape[0]`` and ``len(x)`` are plain integers: right at the example's length and wrong
    at any other, with nothing in one trace to show it. Two traces show it.
    """
    first, second = (visits_of(tape) for tape in tapes)
    symbols = [Symbol(tape, source) for tape in tapes]
    for key, nodes in first.items():
        others = second.get(key, [])
        times = growth.get(key, 0)
        if not times:
            pairs = list(zip(nodes, others, strict=False))
            for one, other in pairs:
                replace_moving((one, other), ([one], [other]), lengths, symbols)
            continue
        for turn in range(times):
            # Both traces are at their second step here, so what differs is the length and not the step.
            ones, rest = nodes[turn::times], others[turn::times]
            if len(ones) > 1 and len(rest) > 1:
                replace_moving((ones[1], rest[1]), (ones, rest), lengths, symbols)


class Symbol:
    """The number of time steps in one tape, as a node."""

    def __init__(self, tape: Tape, source: TimeSource) -> None:
        self.tape = tape
        self.axis = source.axis or 0
        self.nodes: dict[int, fx.Node] = {}
        clock = source.clock(tape)
        if clock is not None:
            self.nodes[0] = clock

    def plus(self, offset: int) -> fx.Node:
        """Returns the node of the number of steps plus something."""
        if offset in self.nodes:
            return self.nodes[offset]
        source = next(node for node in self.tape.inputs if node is not None and hasattr(node.meta["val"], "shape"))
        inputs = [node for node in self.tape.graph.nodes if node.op == "placeholder"]
        length = self.nodes[0].meta["val"] if 0 in self.nodes else source.meta["val"].shape[self.axis]
        with self.tape.graph.inserting_after(
            inputs[-1] if offset == 0 or self.nodes.get(0) in inputs else self.plus(0)
        ):
            if offset == 0:
                node = self.tape.graph.call_method("size", (source, self.axis))
            else:
                base = self.plus(0)
                node = self.tape.graph.call_function(operator.add, (base, offset))
                base.append(node)
        node.meta.update(val=length + offset, where=None, place=None)
        self.nodes[offset] = node
        return node


def replace_moving(
    pair: tuple[fx.Node, fx.Node],
    groups: tuple[list[fx.Node], list[fx.Node]],
    lengths: tuple[int, int],
    symbols: list[Symbol],
) -> None:
    """Replaces what differs between two nodes by exactly the difference of the lengths, in all visits of the place."""
    slots = [flat(node) for node in pair]
    if len(slots[0]) != len(slots[1]):
        return
    for position, (one, other) in enumerate(zip(*slots, strict=True)):
        if type(one) is not int or type(other) is not int or other - one != lengths[1] - lengths[0]:
            continue
        if any(
            flat(node)[position] != value for group, value in zip(groups, (one, other), strict=True) for node in group
        ):
            # It changes from step to step as well: an index that runs backwards, and no length.
            continue
        offset = one - lengths[0]
        for group, symbol in zip(groups, symbols, strict=True):
            for node in group:
                put(node, position, symbol.plus(offset))


def flat(node: fx.Node) -> list[Any]:
    """Returns the leaves of a node's arguments and keyword arguments."""
    found: list[Any] = []

    def note(leaf: Any) -> Any:
        found.append(leaf)
        return leaf

    rebuild((node.args, node.kwargs), note)
    return found


def put(node: fx.Node, position: int, value: fx.Node) -> None:
    """Replaces one leaf of a node's arguments."""
    counter = iter(range(1 << 30))
    args, kwargs = rebuild((node.args, node.kwargs), lambda leaf: value if next(counter) == position else leaf)
    node.args, node.kwargs = args, kwargs


def rebuild(argument: Any, change: Any) -> Any:
    """Rebuilds an argument leaf by leaf."""
    if isinstance(argument, tuple):
        return tuple(rebuild(item, change) for item in argument)
    if isinstance(argument, list):
        return [rebuild(item, change) for item in argument]
    if isinstance(argument, dict):
        return {key: rebuild(item, change) for key, item in argument.items()}
    if isinstance(argument, slice):
        return slice(*(rebuild(item, change) for item in (argument.start, argument.stop, argument.step)))
    return change(argument)
