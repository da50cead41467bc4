"""What is computed on the values of all steps at once, between one loop over time and the next, computed step by step.

A network may run layer by layer: a neuron over the whole sequence, then ``fc2(spikes)`` on what it gave, then the next
neuron. To run all layers at every step, the operations between them have to work on one step's values. They may where
they treat the slices along the time axis alike: on (T, B, ...) a Linear or anything elementwise, on (T * B, ...)
anything that treats samples alike, such as a convolution.
"""

from __future__ import annotations

import operator
from collections.abc import Callable
from typing import Any

import torch
from torch import fx, nn
from torch.utils import _pytree as pytree

from tracecompile.analysis.norms import NORMS
from tracecompile.analysis.pointwise import acts_alone
from tracecompile.capture.layerwise.row_wise import treats_rows_alike
from tracecompile.capture.layerwise.stacks import Steps, called, flattened, picked_item, picks, steps_of
from tracecompile.capture.tracing.build import find
from tracecompile.capture.tracing.tape import Tape
from tracecompile.errors import UnsupportedOperation

_RESHAPES = frozenset(["flatten", "view", "reshape", "unflatten"])


class EachStep:
    """Rewrites a tape so that later loops read what the operations make of each step's value."""

    def __init__(self, tape: Tape, root: nn.Module) -> None:
        self.tape = tape
        self.graph = tape.graph
        self.root = root
        self.steps: dict[fx.Node, Steps] = {}
        self.given: set[fx.Node] = set()
        self.taken_apart: set[fx.Node] = set()

    def rewrite(self) -> None:
        """Rewrites the tape in place."""
        self.taken_apart = self._read_by_step()
        for node in list(self.graph.nodes):
            put_together = steps_of(node)
            if put_together is not None:
                self.steps[node] = put_together
                self.given.add(node)
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
        if dim == steps.axis or (steps.merged and dim == 0):
            return
        inner = dim if steps.merged or dim < steps.axis else dim - 1
        node.args = (steps.items[0], inner)

    def _reshaped(self, node: fx.Node, steps: Steps, source: fx.Node) -> Steps | None:
        """Recognises time and batch made one axis, or two again; other axes flattened step by step."""
        module = self._module(node)
        name = "flatten" if isinstance(module, nn.Flatten) else called(node)
        if name not in _RESHAPES or not steps.axis < 2:
            return None
        shape, item = tuple(node.meta["val"].shape), tuple(steps.items[0].meta["val"].shape)
        count = len(steps.items)
        if not steps.merged and shape == (count * item[0], *item[1:]):
            return Steps(steps.items, steps.axis, merged=True)
        if steps.merged and shape == (*item[: steps.axis], count, *item[steps.axis :]):
            return Steps(steps.items, steps.axis)
        if name == "flatten":
            start, end = flattened(node) if module is None else (int(module.start_dim), int(module.end_dim))  # type: ignore[arg-type]
            shift = 0 if steps.merged else 1
            if start > steps.axis or (steps.merged and start > 0):
                arguments = (source, start - shift, end - shift if end >= 0 else end)
                return self._each(node, steps, "call_method", "flatten", arguments, {})
        return None

    def _applied(self, node: fx.Node, steps: Steps) -> Steps | None:
        """Applies an operation step by step, if it treats the steps alike."""
        module = self._module(node)
        if isinstance(module, NORMS) and module.training:
            raise UnsupportedOperation(
                f"The normalisation {node.target} takes the statistics of all time steps at once.",
                "Call it in the loop over time, once a step.",
                node.meta.get("where"),
            )
        alike = treats_rows_alike(node, module, samples=steps.merged)
        return self._each(node, steps, node.op, node.target, node.args, node.kwargs) if alike else None

    def _module(self, node: fx.Node) -> nn.Module | None:
        if node.op != "call_module" or str(node.target) in self.tape.leaves:
            return None
        module: nn.Module = find(self.root, str(node.target))
        return module

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
        self._note(node)
        return Steps(tuple(made), steps.axis, steps.merged)

    def _note(self, node: fx.Node) -> None:
        """Says in the report what may round otherwise, and ties to the mode what is another thing in training."""
        if isinstance(self._module(node), NORMS):
            self.tape.reads_mode = True
        if not acts_alone(node):
            what = node.target if node.op == "call_module" else called(node)
            note = f"The model computes {what} for all steps at once, this network step by step: equal up to rounding."
            self.tape.notes = tuple(dict.fromkeys([*self.tape.notes, note]))

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
        index = (slice(None),) * steps.axis

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
            if node in self.given:
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
