"""Recognises what belongs to the t-th step of a sequence: slices that are read and slices that are written."""

from __future__ import annotations

import operator
from typing import Any

import torch
from torch import fx

from tracecompile.capture.loops.loop_body import Loop, Site, Slice
from tracecompile.capture.tracing.functionalize import set_item


def slice_at_every_step(loop: Loop, site: Site) -> Slice | None:
    """Returns the slice that a site takes, where it takes the t-th at step t and of what the loop does not make."""
    template = loop.template(site)
    found = sliced_at(template, loop.steps - 1)
    if found is None or found.sequence in loop.when:
        return None
    for step in range(loop.steps):
        node = loop.at(site, step)
        if node is None or sliced_at(node, step) != found:
            return None
    return found


def axis_of_writes(loop: Loop, site: Site) -> int | None:
    """Recognises ``out[t] = value`` into a tensor made before the loop; returns the axis of t."""
    template = loop.template(site)
    if template.target is not set_item:
        return None
    dim = axis_of_index(template.args[1], loop.steps - 1, template.meta["val"].dim())
    before = loop.at(site, loop.steps - 2)
    first = loop.at(site, 0)
    if dim is None or before is None or first is None or template.args[0] is not before or first.args[0] in loop.when:
        return None
    value = template.args[2]
    shape = list(template.meta["val"].shape)
    if not isinstance(value, fx.Node) or shape.pop(dim) != loop.steps or list(value.meta["val"].shape) != shape:
        return None
    for step in range(loop.steps):
        node = loop.at(site, step)
        if node is None or axis_of_index(node.args[1], step, template.meta["val"].dim()) != dim:
            return None
        source = loop.when.get(node.args[2])  # type: ignore[arg-type]
        if source is None or source[0] != step:
            return None
    return dim


def sliced_at(node: fx.Node, step: int) -> Slice | None:
    """Returns the sequence of which a node is the slice at a step, the axis counted from the front."""
    if node.target is operator.getitem and isinstance(node.args[0], fx.Node):
        source = node.args[0]
        if isinstance(source.meta["val"], (tuple, list)):
            return unbound(source) if node.args[1] == step and type(node.args[1]) is int else None
        dim = axis_of_index(node.args[1], step, source.meta["val"].dim())
        kept = axis_of_index(node.args[1], slice(step, step + 1), source.meta["val"].dim())
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


def axis_of_index(index: Any, step: int | slice, dimensions: int) -> int | None:
    """Returns the axis along which an index picks the step, if it takes everything along the others."""
    items = index if isinstance(index, tuple) else (index,)
    axis = None
    for position, item in enumerate(items):
        if type(item) is type(step) and item == step and axis is None:
            axis = position
        elif not (item is Ellipsis or (isinstance(item, slice) and item == slice(None))):
            return None
    if axis is None or Ellipsis not in items[:axis]:
        return axis
    return dimensions - (len(items) - axis)
