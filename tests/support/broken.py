"""Passes that break what they promise, and how they are caught."""

from __future__ import annotations

import re
from collections.abc import Callable
from dataclasses import replace
from typing import Any

import pytest
from torch import fx, nn

from support.hand_built import before
from tracecompile.errors import PassError
from tracecompile.layers import Layer
from tracecompile.passes.base import Pass
from tracecompile.program import StepProgram

Damage = Callable[[StepProgram], StepProgram]


def require_caught(kind: type[Pass], program: StepProgram, damage: Damage, said: str) -> None:
    """Requires that a pass keeps its promises on a program, and is caught by name once its result is damaged.

    Args:
        kind: The pass.
        program: What the pass is to run on.
        damage: What a broken pass does to the result.
        said: What the error says of it, as a regular expression.
    """

    class Broken(kind):  # type: ignore[misc, valid-type]
        name = f"broken_{kind.name}"

        def run(self, program: StepProgram) -> StepProgram:
            return damage(super().run(program))

    program = before(kind, program)
    kind()(program)
    with pytest.raises(PassError, match=f"^Pass {re.escape(Broken.name)} broke its promise: .*{said}"):
        Broken()(program)


def changed_layer(index: int, **changes: Any) -> Damage:
    """Returns what replaces some attributes of one layer."""
    return changed_by(index, lambda layer: replace(layer, **changes))


def changed_by(index: int, change: Callable[[Layer], Layer]) -> Damage:
    """Returns what replaces one layer by what a function makes of it."""

    def damage(program: StepProgram) -> StepProgram:
        layers = list(program.layers)
        layers[index] = change(layers[index])
        return program.evolve(layers=tuple(layers))

    return damage


def edited(module: fx.GraphModule, edit: Callable[[fx.Graph], None], **owned: nn.Module) -> fx.GraphModule:
    """Returns a copy of a graph in which something is different, and which may call some modules more."""
    graph = fx.Graph()
    values: dict[fx.Node, fx.Node] = {}
    for node in module.graph.nodes:
        values[node] = graph.node_copy(node, values.__getitem__)
    edit(graph)
    return fx.GraphModule({**dict(module.named_modules()), **dict(module.named_parameters()), **owned}, graph)


def numbers_changed(old: float, new: float) -> Callable[[fx.Graph], None]:
    """Returns an edit that puts one number in the place of another, wherever it is an argument."""

    def edit(graph: fx.Graph) -> None:
        for node in graph.nodes:
            if node.op not in ("placeholder", "output"):
                node.args = tuple(new if argument == old else argument for argument in node.args)

    return edit


def results_changed(change: Callable[..., tuple[Any, ...]]) -> Callable[[fx.Graph], None]:
    """Returns an edit that returns what a function makes of the groups of results."""

    def edit(graph: fx.Graph) -> None:
        output = next(node for node in reversed(graph.nodes) if node.op == "output")
        output.args = (change(*output.args[0]),)

    return edit
