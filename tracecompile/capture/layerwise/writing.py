"""Writes down, for every time step, what is computed of whole sequences."""

from __future__ import annotations

import operator
from collections.abc import Callable, Iterable, Mapping
from typing import Any

import torch
from torch import Tensor, fx, nn

from tracecompile.analysis.norms import NORMS
from tracecompile.capture.layerwise.call_arguments import leaves_of
from tracecompile.capture.layerwise.layout import Form
from tracecompile.capture.layerwise.numbers import Computed, SizeOf
from tracecompile.capture.layerwise.probing import Prober
from tracecompile.capture.layerwise.recipe import Recipe
from tracecompile.capture.layerwise.running import casts
from tracecompile.capture.layerwise.whole import Whole
from tracecompile.capture.loops.lengths import rebuild
from tracecompile.capture.loops.places import place_key
from tracecompile.capture.tracing.tape import Tape

Spelled = tuple[Any, ...]
"""What a node is made of: (op, target, args, kwargs)."""


class StepWriter:
    """Knows the nodes of each step's part of every sequence that is asked for."""

    def __init__(self, tape: Tape, wholes: Mapping[fx.Node, Whole], prober: Prober) -> None:
        self.tape = tape
        self.graph = tape.graph
        self.wholes = wholes
        self.prober = prober
        self.made: dict[tuple[fx.Node, Form], list[fx.Node]] = {}
        self.ends: dict[fx.Node, fx.Node] = {}
        self.turn: dict[fx.Node, int] = {}
        seen: dict[Any, int] = {}
        for node in wholes:
            key = place_key(node)
            self.turn[node] = seen[key] = seen.get(key, -1) + 1

    def write(self, wanted: Iterable[fx.Node]) -> None:
        """Writes down the steps of some sequences, and of what they are computed from."""
        needed: set[fx.Node] = set()
        waiting = list(wanted)
        while waiting:
            node = waiting.pop()
            if node not in needed:
                needed.add(node)
                waiting += self._operands(node)
        for node, whole in self.wholes.items():
            if node in needed and self._is_computed(whole) and whole.recipe is not None and whole.recipe.same is None:
                self._compute(node, whole.recipe)

    def parts(self, node: fx.Node, form: Form) -> list[fx.Node]:
        """Returns the node of each step's part of a sequence."""
        whole = self.wholes[node]
        if whole.recipe is not None and whole.recipe.same is not None:
            source = whole.recipe.same
            if form == "item" or whole.layout.merged:
                return self.parts(source, "item")
        elif whole.layout.merged:
            form = "item"
        if (node, form) not in self.made:
            self.made[node, form] = self._found(node, whole, form)
        return self.made[node, form]

    def last(self, node: fx.Node) -> fx.Node:
        """Returns the last node that was written for a sequence, itself if there is none."""
        return self.ends.get(node, node)

    def _is_computed(self, whole: Whole) -> bool:
        return whole.recipe is not None and whole.items is None and not whole.given

    def _operands(self, node: fx.Node) -> list[fx.Node]:
        whole = self.wholes[node]
        if whole.recipe is not None and whole.recipe.same is not None:
            return [whole.recipe.same]
        if whole.recipe is None or not self._is_computed(whole):
            return []
        found: list[fx.Node] = []
        waiting = leaves_of(whole.recipe.arguments)
        while waiting:
            leaf = waiting.pop()
            if isinstance(leaf, Computed):
                waiting += leaf.operands
            elif isinstance(leaf, SizeOf):
                found.append(leaf.source)
            elif isinstance(leaf, fx.Node) and leaf in self.wholes:
                found.append(leaf)
        return found

    def _found(self, node: fx.Node, whole: Whole, form: Form) -> list[fx.Node]:
        """Returns parts that are there, or taken out of the whole, with or without the time axis."""
        if whole.items is not None and form == "item":
            return list(whole.items)
        other: Form = "kept" if form == "item" else "item"
        axis = whole.layout.axis
        if (node, other) in self.made or form == "kept":
            method, given = "squeeze" if form == "item" else "unsqueeze", self.parts(node, other)
            return self._each(node, form, lambda step: ("call_method", method, (given[step], axis), {}))
        layout = whole.layout
        if not layout.merged:
            return self._each(node, form, lambda step: ("call_method", "select", (node, axis, step), {}))
        sizes = (layout.steps, -1) if layout.merged == "time first" else (-1, layout.steps)
        with self.graph.inserting_before(self.last(node).next):
            apart = self._new(node, "apart", ("call_method", "unflatten", (node, axis, sizes), {}))
        self.ends[node] = apart
        along = layout.stacking_axis
        return self._each(node, form, lambda step: ("call_method", "select", (apart, along, step), {}))

    def _compute(self, node: fx.Node, recipe: Recipe) -> None:
        """Writes an operation down once for each step."""
        if recipe.running:
            self.made[node, "item"] = self._added_up(node, *leaves_of(recipe.arguments))
            return
        call = recipe.call or node
        module = self.prober.module(call)
        if module is not None and any(isinstance(m, (*NORMS, nn.modules.dropout._DropoutNd)) for m in module.modules()):
            # It is another operation in the other mode.
            self.tape.reads_mode = True
        numbers = [leaf for leaf in leaves_of(recipe.arguments) if isinstance(leaf, (SizeOf, Computed))]
        distinct = dict.fromkeys(numbers)
        at_step = {number: self._numbers(node, number, f"number {place}") for place, number in enumerate(distinct)}
        operands = {
            leaf: self.parts(leaf, recipe.form)
            for leaf in leaves_of(recipe.arguments)
            if isinstance(leaf, fx.Node) and leaf in self.wholes
        }

        def written(step: int) -> tuple[Any, ...]:
            def now(leaf: Any) -> Any:
                if isinstance(leaf, (SizeOf, Computed)):
                    return at_step[leaf][step]
                return operands[leaf][step] if isinstance(leaf, fx.Node) and leaf in operands else leaf

            return (call.op, call.target, *rebuild(recipe.arguments, now))

        made = self._each(node, "computed", written)
        if recipe.index is not None:
            several, index = made, recipe.index
            made = self._each(
                node, "picked", lambda step: ("call_function", operator.getitem, (several[step], index), {})
            )
        self.made[node, recipe.result if not recipe.layout.merged else "item"] = made

    def _added_up(self, node: fx.Node, source: fx.Node) -> list[fx.Node]:
        """Writes down, for each step, what all steps up to it add up to."""
        added, result = self.parts(source, "item"), node.meta["val"]
        for dtype in casts(source.meta["val"], result):
            added = self._cast(node, f"as {dtype}", added, dtype)
        sums = self._chain(
            node, "added up", lambda step, before: ("call_function", operator.add, (before or 0, added[step]), {})
        )
        return sums if sums[0].meta["val"].dtype == result.dtype else self._cast(node, "rounded", sums, result.dtype)

    def _cast(self, node: fx.Node, role: str, values: list[fx.Node], dtype: torch.dtype) -> list[fx.Node]:
        return self._each(node, role, lambda step: ("call_method", "to", (values[step], dtype), {}))

    def _numbers(self, node: fx.Node, number: Any, role: str) -> list[Any]:
        """Writes a size, or arithmetic on sizes, down for each step, each part of it in a role of its own."""
        if isinstance(number, SizeOf):
            parts = self.parts(number.source, "item")
            dim = number.dim
            return self._each(node, role, lambda step: ("call_method", "size", (parts[step], dim), {}))
        if not isinstance(number, Computed):
            return [number] * self.wholes[node].layout.steps
        operands = [self._numbers(node, operand, f"{role}.{place}") for place, operand in enumerate(number.operands)]
        target: Any = number.node.target
        return self._each(
            node, role, lambda step: ("call_function", target, tuple(each[step] for each in operands), {})
        )

    def _each(self, node: fx.Node, role: str, spelled: Callable[[int], Spelled]) -> list[fx.Node]:
        return self._chain(node, role, lambda step, before: spelled(step))

    def _chain(self, node: fx.Node, role: str, spelled: Callable[[int, fx.Node | None], Spelled]) -> list[fx.Node]:
        """Writes a node for each step, which may read that of the step before."""
        made: list[fx.Node] = []
        with self.graph.inserting_before(self.last(node).next):
            for step in range(self.wholes[node].layout.steps):
                made.append(self._new(node, role, spelled(step, made[-1] if made else None)))
        self.ends[node] = made[-1]
        return made

    def _new(self, like: fx.Node, role: str, spelled: Spelled) -> fx.Node:
        op, target, args, kwargs = spelled
        node = self.graph.create_node(op, target, tuple(args), dict(kwargs))
        place = ("at one step", like.meta.get("place"), self.turn[like], role)
        node.meta.update(where=like.meta.get("where"), place=place)
        args, kwargs = fx.map_arg((node.args, node.kwargs), lambda used: used.meta["val"])
        with torch.no_grad():
            value = self.prober.run(node, args, kwargs)
        node.meta["val"] = value.detach() if isinstance(value, Tensor) else value
        return node
