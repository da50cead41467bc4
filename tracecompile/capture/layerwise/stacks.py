"""Whole sequences that are put together from the values of single steps."""

from __future__ import annotations

import operator
from typing import Any

import torch
from torch import fx
from torch.utils import _pytree as pytree

from tracecompile.capture.layerwise.layout import Layout
from tracecompile.capture.loops.histories import ROWS
from tracecompile.capture.loops.places import place_key, visit_counts
from tracecompile.capture.tracing.tape import Tape

_JOINING = (torch.cat, torch.concat, torch.concatenate)


def stacked(node: fx.Node, steps: int) -> tuple[Layout, tuple[fx.Node, ...]] | None:
    """Returns the layout of a tensor that stacks one value per step, and those values.

    Args:
        node: Any node.
        steps: How many values there have to be.
    """
    if ROWS in node.meta:
        rows, axis = node.meta[ROWS]
        return (Layout(axis, steps), rows) if len(rows) == steps else None
    items = _items(node) if node.target is torch.stack else []
    axis = _axis(node) if len(items) == steps else None
    return None if axis is None else (Layout(axis, steps), tuple(items))


def spell_as_stacks(tape: Tape, steps: int) -> None:
    """Spells ``torch.cat`` of one value per step as ``torch.stack`` of the values, in place.

    Args:
        tape: A trace.
        steps: The number of time steps.
    """
    counts = visit_counts(tape)
    for node in list(tape.graph.nodes):
        items = _items(node) if node.target in _JOINING else []
        axis = _axis(node) if len(items) > 1 else None
        if axis is None:
            continue
        bare = [_without_axis(item, axis) for item in items]
        if all(item is not None for item in bare):
            _replace(tape, node, bare, axis, merged=False)
        elif len(items) == steps and counts.get(place_key(node), 0) < steps - 1 and _alike(items):
            merged = items[0].meta["val"].shape[axis] > 1
            _replace(tape, node, items if merged else [_squeezed(tape, item, axis) for item in items], axis, merged)


def _items(node: fx.Node) -> list[fx.Node]:
    items: Any = node.args[0] if node.args else None
    whole = isinstance(items, (list, tuple)) and all(isinstance(item, fx.Node) for item in items)
    return list(items) if whole else []


def _axis(node: fx.Node) -> int | None:
    axis: Any = node.args[1] if len(node.args) > 1 else node.kwargs.get("dim", node.kwargs.get("axis", 0))
    rank: int = node.meta["val"].dim()
    return axis % rank if isinstance(axis, int) else None


def _alike(items: list[fx.Node]) -> bool:
    """Tells whether values are of one kind, made in one place; the first may be made elsewhere."""
    shapes = {item.meta["val"].shape for item in items}
    return len(shapes) == 1 and len({place_key(item) for item in items[1:]}) == 1


def _without_axis(item: fx.Node, axis: int) -> fx.Node | None:
    """Returns what a value was before it was given the time axis with length 1."""
    source = item.args[0] if len(item.args) == 2 else None
    if not isinstance(source, fx.Node):
        return None
    given: Any = item.args[1]
    if item.target is operator.getitem:
        index = given if isinstance(given, tuple) else (given,)
        plain = all(part is None or part == slice(None) for part in index if not isinstance(part, fx.Node))
        nodes = any(isinstance(part, fx.Node) for part in index)
        return source if plain and not nodes and index.count(None) == 1 and index.index(None) == axis else None
    if item.target not in ("unsqueeze", torch.unsqueeze):
        return None
    return source if isinstance(given, int) and given % item.meta["val"].dim() == axis else None


def _squeezed(tape: Tape, item: fx.Node, axis: int) -> fx.Node:
    with tape.graph.inserting_after(item):
        made = tape.graph.call_method("squeeze", (item, axis))
    place = (item.meta.get("place"), "squeezed")
    made.meta.update(val=item.meta["val"].squeeze(axis), where=item.meta.get("where"), place=place)
    return made


def _replace(tape: Tape, node: fx.Node, items: list[Any], axis: int, merged: bool) -> None:
    with tape.graph.inserting_before(node):
        made = tape.graph.call_function(torch.stack, (items, axis))
        made.meta.update(node.meta, val=torch.stack([item.meta["val"] for item in items], axis))
        if merged:
            stack, made = made, tape.graph.call_method("flatten", (made, axis, axis + 1))
            made.meta.update(node.meta, place=(node.meta.get("place"), "merged"))
            stack.meta["place"] = (node.meta.get("place"), "stacked")
    node.replace_all_uses_with(made)
    tape.result = pytree.tree_map(lambda leaf: made if leaf is node else leaf, tape.result)
    tape.attributes = {name: made if held is node else held for name, held in tape.attributes.items()}
