"""How an operation on whole sequences is computed at one time step, found and verified by value.

The same operation is applied to each operand's part of the step. An operand keeps its time axis with length 1, so that
no argument that names an axis changes; only sizes that are the number of steps do. Where an operation names no axis at
all, it works on what belongs to the step without that axis. Whatever comes out must be, for every step, the part of
what the operation makes of the whole, on data that was drawn to tell: what mixes time steps fails, whatever it is.
"""

from __future__ import annotations

import math
import operator
import warnings
from collections.abc import Iterator, Mapping
from dataclasses import dataclass
from typing import Any

import torch
from torch import Tensor, fx, nn
from torch.utils import _pytree as pytree

from tracecompile.analysis.pointwise import acts_alone
from tracecompile.capture.layerwise.call_arguments import leaves_of, replaced
from tracecompile.capture.layerwise.layout import Form, Layout, fitting_layouts
from tracecompile.capture.layerwise.numbers import Numbers, number_value
from tracecompile.capture.layerwise.probing import FAILURES, Prober
from tracecompile.capture.loops.lengths import rebuild
from tracecompile.operations import Fact, has, operation_of

GIVEN_SIZES = ("view", "reshape", "unflatten", "view_as", "reshape_as")
"""What may take time and batch apart."""


@dataclass(frozen=True)
class Recipe:
    """One operation at one step.

    Attributes:
        layout: Where the time steps of its whole value are.
        form: Whether its operands have the time axis with length 1.
        result: Whether its value has.
        arguments: Positional and keyword arguments, numbers as they are at one step.
        same: The operand whose part its value is, where nothing is to be computed.
        call: What is called, where the node only picks one of several values.
        index: Which one.
        running: Whether its value at a step is what all steps up to it add up to.
    """

    layout: Layout
    form: Form = "item"
    result: Form = "item"
    arguments: Any = ((), {})
    same: fx.Node | None = None
    call: fx.Node | None = None
    index: int | None = None
    running: bool = False


class RecipeFinder:
    """Finds recipes for the operations of one tape."""

    def __init__(self, prober: Prober, numbers: Numbers) -> None:
        self.prober = prober
        self.numbers = numbers

    @staticmethod
    def call(node: fx.Node) -> fx.Node:
        """Returns the node that computes a value: one that gives several where the node itself only picks one."""
        source = node.args[0] if node.target is operator.getitem else None
        if isinstance(source, fx.Node) and isinstance(source.meta["val"], (tuple, list)):
            return source
        return node

    def find(self, node: fx.Node, layouts: Mapping[fx.Node, Layout]) -> Recipe | None:
        """Returns how to compute a node at one step, None where it cannot be.

        Args:
            layouts: Of those of its operands that are whole sequences.
        """
        call = self.call(node)
        if not self.prober.may_run(call):
            return None
        with warnings.catch_warnings():  # of a trial, which the user did not write
            warnings.simplefilter("ignore")
            return self._tried(_Trial(self.prober, node, call, layouts), call, layouts)

    def _tried(self, trial: _Trial, call: fx.Node, layouts: Mapping[fx.Node, Layout]) -> Recipe | None:
        if trial.whole is None:
            return None
        if len(layouts) == 1 and lays_out(call, self.prober.module(call)) and trial.hands_on():
            return trial.found
        for form in self._forms(call, layouts):
            for arguments in self._arguments(call, trial.steps):
                if trial.computes(form, arguments):
                    return trial.found
        return None

    def _forms(self, node: fx.Node, layouts: Mapping[fx.Node, Layout]) -> tuple[Form, ...]:
        if all(layout.merged for layout in layouts.values()):
            return ("item",)
        if acts_alone(node):
            return ("item", "kept")
        leaves = [leaf for leaf in pytree.tree_leaves((node.args, node.kwargs)) if type(leaf) is int]
        numbers = any(not isinstance(source.meta["val"], Tensor) for source in node.all_input_nodes)
        spelled = any(isinstance(leaf, str) for leaf in pytree.tree_leaves((node.args, node.kwargs)))
        names_axes = numbers or spelled or any(leaf >= 0 for leaf in leaves)
        return ("kept",) if names_axes else ("item", "kept")

    def _arguments(self, node: fx.Node, steps: int) -> Iterator[Any]:
        """Yields the arguments that a node may have at one step, the likeliest first."""
        given = (node.args, node.kwargs)
        numbers = [source for source in node.all_input_nodes if not isinstance(source.meta["val"], Tensor)]
        present = {source: self.numbers.at_step(source) for source in numbers}

        def put(free: fx.Node | None) -> Any:
            def changed(leaf: Any) -> Any:
                if not isinstance(leaf, fx.Node):
                    return leaf
                return -1 if leaf is free else present.get(leaf, leaf)

            return rebuild(given, changed)

        varying = [source for source in numbers if not isinstance(present[source], int)]
        bases = [*(put(source) for source in varying[:2]), put(None)]
        yield from bases
        for base in bases:
            leaves = leaves_of(base)
            for place, leaf in enumerate(leaves):
                if type(leaf) is int and leaf >= steps and leaf % steps == 0:
                    for value in (1,) if leaf == steps else (-1, leaf // steps):
                        yield replaced(base, place, value)
        if numbers:
            yield given  # what is divided by the number of steps is so at each of them


def lays_out(call: fx.Node, module: nn.Module | None) -> bool:
    """Tells whether an operation lays the same numbers out in another way, at any batch size.

    Many others leave the numbers of an example as they are: a mean over one sample, ``[-3:]`` of two, a roll by as many
    samples as there are.
    """
    if call.target is operator.getitem:
        index = call.args[1] if isinstance(call.args[1], tuple) else (call.args[1],)
        return all(item in (None, Ellipsis, slice(None)) for item in index)
    return has(call, Fact.LAYS_OUT | Fact.COPIES, module)


class _Trial:
    """One operation, run on whole sequences and on their parts."""

    def __init__(self, prober: Prober, node: fx.Node, call: fx.Node, layouts: Mapping[fx.Node, Layout]) -> None:
        self.prober = prober
        self.node = call
        self.index: Any = None if call is node else node.args[1]
        self.layouts = layouts
        self.steps = next(iter(layouts.values())).steps
        self.is_given_sizes = operation_of(call, prober.module(call)).name in GIVEN_SIZES
        self.function = prober.function(call)
        self.found: Recipe | None = None
        self.values = {source: prober.drawn(source) for source in call.all_input_nodes}
        self.whole = self._run((call.args, call.kwargs), self.values)
        wanted = node.meta["val"]
        if self.whole is not None and (self.whole.shape != wanted.shape or self.whole.dtype != wanted.dtype):
            self.whole = None

    def hands_on(self) -> bool:
        """Tells whether the operation only moves the time axis: each step has the same numbers, gradients as well."""
        (source, layout), whole = next(iter(self.layouts.items())), self.whole
        value = self.values[source]
        assert whole is not None
        if whole.numel() != value.numel() or whole.dtype != value.dtype:
            return False
        part = layout.item(value, 0)
        for result in fitting_layouts(tuple(whole.shape), tuple(part.shape), self.steps, keep=False):
            if all(torch.equal(result.item(whole, t), layout.item(value, t)) for t in range(self.steps)):
                if value.is_floating_point() and not self._gradient_handed_on(source, layout, result):
                    return False
                self.found = Recipe(result, same=source)
                return True
        return False

    def _gradient_handed_on(self, source: fx.Node, layout: Layout, result: Layout) -> bool:
        leaf = self.values[source].detach().clone().requires_grad_()
        with torch.enable_grad():
            whole = self._run((self.node.args, self.node.kwargs), {**self.values, source: leaf}, learn=True)
        if whole is None or not whole.requires_grad:
            return False
        signal = self.prober.noise(whole.detach())
        (gradient,) = torch.autograd.grad(whole, leaf, signal)
        return all(torch.equal(layout.item(gradient, t), result.item(signal, t)) for t in range(self.steps))

    def computes(self, form: Form, arguments: Any) -> bool:
        """Tells whether the operation on each step's parts gives that step of the whole; notes the recipe if so."""
        whole = self.whole
        assert whole is not None
        first = self._run(arguments, self._parts(form, 0))
        if first is None or first.dtype != whole.dtype:
            return False
        results: tuple[Form, ...] = ("kept", "item") if form == "kept" else ("item", "kept")
        candidates = [
            (layout, result)
            for result in results
            for layout in fitting_layouts(tuple(whole.shape), tuple(first.shape), self.steps, keep=result == "kept")
        ]
        # An axis of as many numbers as there are steps is that of time alone, where it can be. But time that is merged
        # with a batch of one sample stays so, unless sizes are given.
        merged = all(each.merged for each in self.layouts.values()) and not self.is_given_sizes
        candidates.sort(key=lambda each: bool(each[0].merged) != merged and whole.shape[each[0].axis] == self.steps)
        parts = [first] if candidates else []
        while parts and len(parts) < self.steps:
            part = self._run(arguments, self._parts(form, len(parts)))
            if part is None or part.shape != first.shape:
                return False
            parts.append(part)
        for layout, result in candidates:
            pick = layout.kept if result == "kept" else layout.item
            if all(_close(part, pick(whole, step), whole) for step, part in enumerate(parts)):
                call = None if self.index is None else self.node
                self.found = Recipe(layout, form, result, arguments, None, call, self.index)
                return True
        return False

    def _parts(self, form: Form, step: int) -> dict[fx.Node, Any]:
        parts = dict(self.values)
        for source, layout in self.layouts.items():
            pick = layout.kept if form == "kept" else layout.item
            parts[source] = pick(self.values[source], step)
        return parts

    def _run(self, arguments: Any, values: Mapping[fx.Node, Any], learn: bool = False) -> Tensor | None:
        try:
            args, kwargs = rebuild(arguments, lambda leaf: _value(leaf, values))
            with torch.set_grad_enabled(learn):
                made = self.function(*args, **kwargs)
                made = made if self.index is None else made[self.index]
        except FAILURES:
            return None
        return made if isinstance(made, Tensor) else None


def _value(leaf: Any, values: Mapping[fx.Node, Any]) -> Any:
    return values[leaf] if isinstance(leaf, fx.Node) and leaf in values else number_value(leaf)


def _close(part: Tensor, wanted: Tensor, whole: Tensor) -> bool:
    if not whole.is_floating_point():
        return torch.equal(part, wanted)
    scale = float(whole.abs().nan_to_num(posinf=0.0).max()) if whole.numel() else 0.0
    within = 1e-4 * max(scale, 1e-30)
    return math.isfinite(scale) and torch.allclose(part, wanted, rtol=1e-3, atol=within, equal_nan=True)
