"""What is computed on the values of all steps at once, between one loop over time and the next, computed step by step.

A network may run layer by layer: a neuron over the whole sequence, then ``fc2(spikes)`` on what it gave, then the next
neuron. To run all layers at every step, the operations between them have to work on one step's values. They may where
they treat the slices along the time axis alike: on (T, B, ...) a Linear or anything elementwise, on (T * B, ...) anything
that treats samples alike, such as a convolution.
"""

from __future__ import annotations

import operator
from collections.abc import Callable, Iterator
from dataclasses import dataclass
from typing import Any

import torch
from torch import fx, nn
from torch.nn import functional as F
from torch.utils import _pytree as pytree

from tracecompile.analysis.linearity import NORMS
from tracecompile.analysis.pointwise import acts_alone
from tracecompile.capture.build import find
from tracecompile.capture.tape import Tape
from tracecompile.errors import UnsupportedOperation

_PER_ROW: tuple[type[nn.Module], ...] = (
    nn.Linear, nn.Identity, nn.ReLU, nn.Sigmoid, nn.Tanh, nn.LeakyReLU, nn.ELU, nn.GELU, nn.SiLU, nn.Softplus,
    nn.Hardtanh, nn.ReLU6,
)  # fmt: skip
_PER_SAMPLE: tuple[type[nn.Module], ...] = (
    *_PER_ROW, *NORMS, nn.Conv1d, nn.Conv2d, nn.Conv3d, nn.ConvTranspose1d, nn.ConvTranspose2d, nn.ConvTranspose3d,
    nn.AvgPool1d, nn.AvgPool2d, nn.AvgPool3d, nn.MaxPool1d, nn.MaxPool2d, nn.MaxPool3d, nn.AdaptiveAvgPool1d,
    nn.AdaptiveAvgPool2d, nn.AdaptiveAvgPool3d, nn.GroupNorm, nn.LayerNorm, nn.Upsample, nn.ZeroPad2d,
)  # fmt: skip
_SAMPLE_FUNCTIONS = frozenset(
    "conv1d conv2d conv3d avg_pool1d avg_pool2d avg_pool3d max_pool1d max_pool2d max_pool3d adaptive_avg_pool1d "
    "adaptive_avg_pool2d adaptive_avg_pool3d interpolate".split()
)
_RESHAPES = frozenset(["flatten", "view", "reshape", "unflatten"])


@dataclass(frozen=True)
class Steps:
    """A tensor as the values of single steps.

    Attributes:
        items: One node a step.
        axis: Where the time axis is.
        merged: Whether time and batch, the first two axes, are one.
    """

    items: tuple[fx.Node, ...]
    axis: int
    merged: bool = False

    def together(self, values: list[torch.Tensor]) -> torch.Tensor:
        """Returns the values of all steps as the tensor holds them."""
        whole = torch.stack(values, self.axis)
        return whole.flatten(0, 1) if self.merged else whole


class EachStep:
    """Rewrites a tape so that later loops read what the operations make of each step's value."""

    def __init__(self, tape: Tape, root: nn.Module) -> None:
        self.tape = tape
        self.graph = tape.graph
        self.root = root
        self.steps: dict[fx.Node, Steps] = {}
        self.taken_apart: set[fx.Node] = set()

    def rewrite(self) -> None:
        """Rewrites the tape in place."""
        self.taken_apart = self._read_by_step()
        for node in list(self.graph.nodes):
            items = stacked_items(node)
            if items is not None:
                self.steps[node] = Steps(tuple(items), stacking_axis(node))
            elif any(source in self.steps for source in node.all_input_nodes):
                self._visit(node)
        self._put_together()

    def _read_by_step(self) -> set[fx.Node]:
        """Returns the nodes whose values a later loop takes apart."""
        found: set[fx.Node] = set()
        for node in reversed(self.graph.nodes):
            if node in found or picks(node):
                found.update(node.all_input_nodes)
        return found

    def _visit(self, node: fx.Node) -> None:
        source = next(source for source in node.all_input_nodes if source in self.steps)
        steps = self.steps[source]
        picked = picked_item(node, source, steps)
        if picked is not None:
            node.replace_all_uses_with(picked)
        elif node.target == "size" and len(node.args) == 2:
            self._size(node, steps)
        elif node in self.taken_apart and isinstance(node.meta["val"], torch.Tensor):
            reshaped = self._reshaped(node, steps, source)
            made = reshaped if reshaped is not None else self._applied(node, steps)
            if made is not None:
                self.steps[node] = made

    def _size(self, node: fx.Node, steps: Steps) -> None:
        dim: Any = node.args[1]
        if steps.merged or dim == steps.axis:
            if not (steps.merged and dim > 0):
                return
        inner = dim if steps.merged or dim < steps.axis else dim - 1
        node.args = (steps.items[0], inner)

    def _reshaped(self, node: fx.Node, steps: Steps, source: fx.Node) -> Steps | None:
        """Recognises time and batch made one axis, or two again; other axes flattened step by step."""
        name = node.target if isinstance(node.target, str) else getattr(node.target, "__name__", "")
        if name not in _RESHAPES or not steps.axis < 2:
            return None
        shape, item = tuple(node.meta["val"].shape), tuple(steps.items[0].meta["val"].shape)
        count = len(steps.items)
        if not steps.merged and shape == (count * item[0], *item[1:]):
            return Steps(steps.items, steps.axis, merged=True)
        if steps.merged and shape == (*item[: steps.axis], count, *item[steps.axis :]):
            return Steps(steps.items, steps.axis)
        if name == "flatten":
            start, end = flattened(node)
            shift = 0 if steps.merged else 1
            if start > steps.axis or (steps.merged and start > 0):
                call = ("call_method", "flatten", (source, start - shift, end - shift if end >= 0 else end), {})
                return self._each(node, steps, *call)
        return None

    def _applied(self, node: fx.Node, steps: Steps) -> Steps | None:
        """Applies an operation step by step, if it treats the steps alike."""
        if node.op == "call_module":
            module = find(self.root, str(node.target)) if str(node.target) not in self.tape.leaves else None
            if isinstance(module, NORMS) and module.training:
                raise UnsupportedOperation(
                    f"The normalisation {node.target} takes the statistics of all time steps at once.",
                    "Call it in the loop over time, once a step.",
                    node.meta.get("where"),
                )
            if isinstance(module, nn.Flatten):
                return None
            alike = isinstance(module, _PER_SAMPLE if steps.merged else _PER_ROW)
        else:
            name = node.target if isinstance(node.target, str) else getattr(node.target, "__name__", "")
            alike = acts_alone(node) or node.target is F.linear or (steps.merged and name in _SAMPLE_FUNCTIONS)
        return self._each(node, steps, node.op, node.target, node.args, node.kwargs) if alike else None

    def _each(self, node: fx.Node, steps: Steps, op: str, target: Any, args: Any, kwargs: Any) -> Steps | None:
        """Writes an operation down once for each step; None where that computes something else."""
        operands = {source: self._operand(source, steps, node) for source in node.all_input_nodes}
        if any(operand is None for operand in operands.values()):
            return None
        made = []
        with self.graph.inserting_before(node):
            for step in range(len(steps.items)):
                now = {source: operand(step) for source, operand in operands.items() if operand is not None}
                given, named = fx.map_arg((args, kwargs), now.__getitem__)
                one = self.graph.create_node(op, target, given, named)
                one.meta.update(where=node.meta.get("where"), place=(node.meta["place"], "each step"))
                one.meta["val"] = self._value(one)
                made.append(one)
        whole = steps.together([one.meta["val"] for one in made])
        wanted = node.meta["val"]
        if whole.shape != wanted.shape or not torch.allclose(whole, wanted, rtol=1e-3, atol=1e-4):
            for one in reversed(made):
                self.graph.erase_node(one)
            return None
        return Steps(tuple(made), steps.axis, steps.merged)

    def _operand(self, source: fx.Node, steps: Steps, node: fx.Node) -> Callable[[int], fx.Node] | None:
        """Returns what gives one step's part of an operand; None where there is no telling."""
        if source in self.steps:
            other = self.steps[source]
            same = (len(other.items), other.axis, other.merged) == (len(steps.items), steps.axis, steps.merged)
            return other.items.__getitem__ if same else None
        value, whole = source.meta["val"], node.meta["val"]
        if not isinstance(value, torch.Tensor) or source.op == "get_attr" or value.ndim < whole.ndim - steps.axis:
            return lambda step: source
        if steps.merged or value.ndim != whole.ndim or value.shape[steps.axis] != len(steps.items):
            return None
        index = (*[slice(None)] * steps.axis, slice(None))[: steps.axis]

        def pick(step: int) -> fx.Node:
            one = self.graph.call_function(operator.getitem, (source, (*index, step) if index else step))
            place = (node.meta["place"], "operand", source.name)
            one.meta.update(where=node.meta.get("where"), place=place, val=value.select(steps.axis, step))
            return one

        return pick

    def _value(self, node: fx.Node) -> Any:
        args, kwargs = fx.map_arg((node.args, node.kwargs), lambda used: used.meta["val"])
        with torch.no_grad():
            if node.op == "call_module":
                return find(self.root, str(node.target))(*args, **kwargs)
            if node.op == "call_method":
                return getattr(args[0], str(node.target))(*args[1:], **kwargs)
            return node.target(*args, **kwargs)  # type: ignore[operator]

    def _put_together(self) -> None:
        """Replaces what was computed on all steps by the values of the single steps, where anything else reads it."""
        replaced: dict[fx.Node, fx.Node] = {}
        results = set(pytree.tree_leaves(self.tape.result))
        for node, steps in reversed(self.steps.items()):
            if stacked_items(node) is not None:
                continue
            if node.users or node in results:
                with self.graph.inserting_after(node):
                    whole = self.graph.call_function(torch.stack, (list(steps.items), steps.axis))
                whole.meta.update(val=node.meta["val"], where=node.meta.get("where"), place=None)
                if steps.merged:
                    with self.graph.inserting_after(whole):
                        stacked, whole = whole, self.graph.call_method("flatten", (whole, 0, 1))
                    stacked.meta["val"] = node.meta["val"].unflatten(0, (-1, 1))
                    whole.meta.update(val=node.meta["val"], where=node.meta.get("where"), place=None)
                node.replace_all_uses_with(whole)
                replaced[node] = whole
            self.graph.erase_node(node)
        self.tape.result = pytree.tree_map(
            lambda leaf: replaced.get(leaf, leaf) if isinstance(leaf, fx.Node) else leaf, self.tape.result
        )


def stacked_items(node: Any) -> list[fx.Node] | None:
    """Returns what a node stacks along a new axis."""
    if not isinstance(node, fx.Node) or node.target is not torch.stack:
        return None
    items = node.args[0]
    return list(items) if isinstance(items, (list, tuple)) else None  # type: ignore[arg-type]


def stacking_axis(node: fx.Node) -> int:
    """Returns the axis along which a node stacks."""
    dim: Any = node.args[1] if len(node.args) > 1 else node.kwargs.get("dim", 0)
    return int(dim) % node.meta["val"].dim()


def picks(node: fx.Node) -> bool:
    """Tells whether a node takes parts out of a tensor, one at a time."""
    return node.target in ("unbind", torch.unbind, "select", torch.select) or (
        node.target is operator.getitem
        and any(type(item) is int for item in _index(node))
        and isinstance(node.args[0], fx.Node)
        and isinstance(node.args[0].meta["val"], torch.Tensor)
    )


def picked_item(node: fx.Node, source: fx.Node, steps: Steps) -> fx.Node | None:
    """Returns the value of one step that an index picks, if it takes everything along the other axes."""
    if steps.merged or node.args[0] is not source:
        return None
    if node.target is operator.getitem:
        index = _index(node)
        if len(index) <= steps.axis or any(item != slice(None) for item in _others(index, steps.axis)):
            return None
        number = index[steps.axis]
    elif node.target in ("select", torch.select) and len(node.args) == 3 and node.args[1] == steps.axis:
        number = node.args[2]
    else:
        return None
    count = len(steps.items)
    return steps.items[number] if type(number) is int and -count <= number < count else None


def _others(index: tuple[Any, ...], axis: int) -> Iterator[Any]:
    return (item for position, item in enumerate(index) if position != axis and item is not Ellipsis)


def _index(node: fx.Node) -> tuple[Any, ...]:
    index = node.args[1]
    return index if isinstance(index, tuple) else (index,)


def flattened(node: fx.Node) -> tuple[int, int]:
    """Returns the first and the last axis that a node flattens."""
    start = node.args[1] if len(node.args) > 1 else node.kwargs.get("start_dim", 0)
    end = node.args[2] if len(node.args) > 2 else node.kwargs.get("end_dim", -1)
    return int(start), int(end)  # type: ignore[arg-type]
