"""Tensors that are written step by step, as the values that were written.

``spikes[t] = z`` into a tensor of T steps, and ``spikes[t - 1]`` read back out of it, are a list and its items. What is
read out of a row is the value that was last written there, or the tensor as it was made; and what is read of all rows
after the last write is the stack of their values.
"""

from __future__ import annotations

import itertools
import operator
from bisect import bisect_left
from dataclasses import dataclass, field
from typing import Any

import torch
from torch import fx
from torch.utils import _pytree as pytree

from tracecompile.capture.loops.slices import Pick, picked
from tracecompile.capture.tracing.functionalize import set_item, write_through
from tracecompile.capture.tracing.tape import Tape

FEWEST_SPREAD = 3
"""Rows that tell a loop of every second step from the first and the last."""
ROWS = "rows"
"""Of a node, ``meta[ROWS]`` says (values, axis): that it is the stack of these values, however it is written."""


@dataclass
class History:
    """A tensor whose rows are written one by one.

    Attributes:
        root: The tensor before the first write.
        dim: The axis of its rows.
        rows: By row, the writes: (how many came before, the value).
        versions: The tensor after each write.
    """

    root: fx.Node
    dim: int
    rows: dict[int, list[tuple[int, fx.Node]]] = field(default_factory=dict)
    versions: list[fx.Node] = field(default_factory=list)

    def __len__(self) -> int:
        return int(self.root.meta["val"].shape[self.dim])

    def written(self, row: int, version: int) -> fx.Node | None:
        """Returns what a row holds after some writes; None where it was not written."""
        writes = self.rows.get(row, [])
        before = bisect_left(writes, version + 1, key=lambda write: write[0])
        return writes[before - 1][1] if before else None


def forward_histories(tape: Tape) -> Tape:
    """Rewrites a tape so that no value is read out of a tensor that the loop writes row by row."""
    _Forwarding(tape).rewrite()
    return tape


class _Forwarding:
    def __init__(self, tape: Tape) -> None:
        self.tape, self.graph = tape, tape.graph
        self.of: dict[fx.Node, tuple[History, int]] = {}
        self.anchor: fx.Node = next(iter(tape.graph.nodes))
        self.results = {leaf for leaf in pytree.tree_leaves(tape.result) if isinstance(leaf, fx.Node)}
        self.results |= set(tape.attributes.values())

    def rewrite(self) -> None:
        for node in list(self.graph.nodes):
            written = _written_row(node)
            if written is not None:
                self._write(node, *written)
            elif node.args and node.args[0] in self.of:
                self._read(node)
        for node in list(self.of):
            self._put_together(node)

    def _write(self, node: fx.Node, base: fx.Node, pick: Pick, value: fx.Node) -> None:
        history, version = self.of.get(base, (History(base, pick.dim), -1))
        if history.dim != pick.dim or version != len(history.versions) - 1:
            return
        row = pick.number % len(history)
        history.rows.setdefault(row, []).append((version + 1, self._as_row(node, history, value, pick)))
        history.versions.append(node)
        self.of[node] = history, version + 1

    def _as_row(self, node: fx.Node, history: History, value: fx.Node, pick: Pick) -> fx.Node:
        """Gives a value the shape and the dtype of the row that it is written into."""
        row = history.root.meta["val"].select(history.dim, 0)
        with self.graph.inserting_before(node):
            if pick.keep and value.meta["val"].dim() == row.dim() + 1:
                squeezed = value.meta["val"].squeeze(history.dim)
                value = self._new(node, "call_method", "squeeze", (value, history.dim), squeezed)
            if value.meta["val"].dtype != row.dtype:
                value = self._new(node, "call_method", "to", (value, row.dtype), value.meta["val"].to(row.dtype))
            if value.meta["val"].shape != row.shape:
                like = self._new(node, "call_method", "select", (history.root, history.dim, 0), row)
                value = self._new(node, "call_method", "expand_as", (value, like), value.meta["val"].expand_as(row))
        return value

    def _read(self, node: fx.Node) -> None:
        source = node.args[0]
        assert isinstance(source, fx.Node)
        history, version = self.of[source]
        rows = _rows(node, history)
        if rows is not None:
            self.anchor = node.prev
            values = [history.written(row, version) for row in rows]
            whole = self._whole(node, history, [history.written(row, version) for row in range(len(history))])
            # Taken out of a tensor as long as the user's: products may round by where their operand begins in memory.
            node.args = (whole, *node.args[1:])
            if all(value is not None for value in values):
                node.meta[ROWS] = (tuple(values), history.dim)
            return
        for pick in picked(node):
            if pick.dim != history.dim:
                continue
            row = pick.number % len(history)
            value = history.written(row, version)
            if value is None:
                node.args = (history.root, *node.args[1:])
                return
            with self.graph.inserting_before(node):
                if pick.rest:
                    part = value.meta["val"][pick.rest]
                    value = self._new(node, "call_function", operator.getitem, (value, pick.rest), part)
                if pick.keep:
                    kept = value.meta["val"].unsqueeze(history.dim)
                    value = self._new(node, "call_method", "unsqueeze", (value, history.dim), kept)
            self._replace(node, value)
            return

    def _put_together(self, node: fx.Node) -> None:
        """Makes what reads all rows of a version read the stack of their values."""
        history, version = self.of[node]
        readers = [user for user in node.users if self.of.get(user, (None, 0))[0] is not history]
        if not readers and node not in self.results:
            return
        self.anchor = node
        whole = self._whole(node, history, [history.written(row, version) for row in range(len(history))])
        self._replace(node, whole, keep=self.of)

    def _whole(self, node: fx.Node, history: History, values: list[fx.Node | None]) -> fx.Node:
        spread = self._spread(node, history, values)
        if spread is not None:
            return spread
        parts: list[fx.Node] = []
        row = 0
        while row < len(values):
            end = row
            while end < len(values) and (values[end] is None) == (values[row] is None):
                end += 1
            parts.append(self._part(node, history, values, row, end))
            row = end
        if len(parts) == 1:
            return parts[0]
        joined = torch.cat([part.meta["val"] for part in parts], history.dim)
        return self._last(node, "call_function", torch.cat, (parts, history.dim), joined)

    def _spread(self, node: fx.Node, history: History, values: list[fx.Node | None]) -> fx.Node | None:
        """Writes the rows of a loop of every second step, say, at once; None where the rows are others."""
        written = [row for row, value in enumerate(values) if value is not None]
        if len(written) < FEWEST_SPREAD:
            return None
        strides = {later - row for row, later in itertools.pairwise(written)}
        if len(strides) != 1 or strides == {1}:
            return None
        (stride,) = strides
        stop = written[-1] + 1 if written[-1] + stride < len(values) else None  # to the end at any length
        index = (*(slice(None),) * history.dim, slice(written[0], stop, stride))
        rows = [value for value in values if value is not None]
        stacked = torch.stack([value.meta["val"] for value in rows], history.dim)
        stack = self._last(node, "call_function", torch.stack, (rows, history.dim), stacked)
        whole = set_item(history.root.meta["val"], index, stacked)
        return self._last(node, "call_function", set_item, (history.root, index, stack), whole)

    def _part(self, node: fx.Node, history: History, values: list[fx.Node | None], start: int, end: int) -> fx.Node:
        rows = [value for value in values[start:end] if value is not None]
        if rows:
            stacked = torch.stack([value.meta["val"] for value in rows], history.dim)
            return self._last(node, "call_function", torch.stack, (rows, history.dim), stacked)
        # Counted from the end that is nearer, so that it is the same rows at another length.
        length = len(values)
        bounds = [edge if 2 * edge < length else edge - length or None for edge in (start, end)]
        index = (*(slice(None),) * history.dim, slice(*bounds))
        part = history.root.meta["val"][index]
        return self._last(node, "call_function", operator.getitem, (history.root, index), part)

    def _last(self, like: fx.Node, op: str, target: Any, args: tuple[Any, ...], value: torch.Tensor) -> fx.Node:
        """Adds a node behind the last one that was added; it belongs to no place, and so to no step."""
        with self.graph.inserting_after(self.anchor):
            self.anchor = self.graph.create_node(op, target, args)
        self.anchor.meta.update(val=value, where=like.meta.get("where"), place=None)
        return self.anchor

    def _new(self, like: fx.Node, op: str, target: Any, args: tuple[Any, ...], value: torch.Tensor) -> fx.Node:
        node = self.graph.create_node(op, target, args)
        node.meta.update(val=value, where=like.meta.get("where"), place=(like.meta.get("place"), "row"))
        return node

    def _replace(self, node: fx.Node, value: fx.Node, keep: Any = ()) -> None:
        node.replace_all_uses_with(value, delete_user_cb=lambda user: user not in keep and user is not value)

        def swap(leaf: Any) -> Any:
            return value if leaf is node else leaf

        self.tape.result = pytree.tree_map(swap, self.tape.result)
        self.tape.attributes = {name: swap(leaf) for name, leaf in self.tape.attributes.items()}


def _rows(node: fx.Node, history: History) -> range | None:
    """Returns the rows that a node takes, where it takes a slice of them."""
    index = node.args[1] if node.target is operator.getitem else None
    items = index if isinstance(index, tuple) else (index,)
    if len(items) != history.dim + 1 or not all(isinstance(item, slice) for item in items):
        return None
    *others, rows = items
    plain = all(part is None or type(part) is int for part in (rows.start, rows.stop, rows.step))
    if not plain or any(other != slice(None) for other in others):
        return None
    found = range(*rows.indices(len(history)))
    # A single row is a step of its own; see ``picked``.
    return found if len(found) > 1 and found.step > 0 else None


def _written_row(node: fx.Node) -> tuple[fx.Node, Pick, fx.Node] | None:
    """Returns (tensor, row, value) of a node that writes one row of a tensor."""
    if node.target is set_item:
        (base, *rest, value), view = node.args, "__getitem__"
    elif node.target is write_through:
        base, value, view, *rest = node.args  # type: ignore[assignment]
    else:
        return None
    if not all(isinstance(part, fx.Node) and isinstance(part.meta["val"], torch.Tensor) for part in (base, value)):
        return None
    whole = [pick for pick in _picks(base, str(view), tuple(rest)) if not pick.rest]
    return (base, whole[0], value) if whole else None  # type: ignore[return-value]


def _picks(base: Any, view: str, rest: tuple[Any, ...]) -> list[Pick]:
    """Returns how a view of a tensor, by the name of its method, would be a slice of it."""
    graph = fx.Graph()
    copied = graph.placeholder("base")
    copied.meta["val"] = base.meta["val"]
    if view == "__getitem__":
        return list(picked(graph.call_function(operator.getitem, (copied, *rest))))
    return list(picked(graph.call_method(view, (copied, *rest))))
