"""Leaves out of a step in trace form what a call does not ask for: frozen parameters, initial states that are given."""

from __future__ import annotations

from collections.abc import Collection, Sequence
from typing import Any

from torch import fx

from tracecompile.layers import Accrual


def pruned(
    step: fx.GraphModule, accruals: Sequence[Accrual], dropped: Collection[str]
) -> tuple[fx.GraphModule, tuple[Accrual, ...]]:
    """Returns a step that carries less, and what it carries.

    Args:
        step: In trace form, of a program or of a unit: its last arguments are the accruals, its third result is what
            they become, and its last one (outputs, answers, derivatives) of each layer.
        accruals: What it carries.
        dropped: Names of those that are left out.
    """
    if not dropped:
        return step, tuple(accruals)
    graph, values = fx.Graph(), dict[fx.Node, fx.Node]()
    for node in step.graph.nodes:
        if node.op != "output":
            values[node] = graph.node_copy(node, values.__getitem__)
            continue
        given: Any = fx.map_arg(node.args[0], values.__getitem__)
        outputs, states, moved, read, of_layers = given
        kept = [accrual.name not in dropped for accrual in accruals]
        answered = iter([keep for accrual, keep in zip(accruals, kept, strict=True) if accrual.role == "response"])
        layers = [(made, _only(answers, [next(answered) for _ in answers]), rows) for made, answers, rows in of_layers]
        graph.output((outputs, states, _only(moved, kept), read, tuple(layers)))
    module = fx.GraphModule(step, graph, type(step).__name__)
    module.graph.eliminate_dead_code()
    for node in list(module.graph.nodes):
        if node.op == "placeholder" and node.name in dropped:
            module.graph.erase_node(node)
    module.recompile()
    return module, tuple(accrual for accrual in accruals if accrual.name not in dropped)


def unseen(step: fx.GraphModule) -> fx.GraphModule:
    """Returns a step that carries the same, and says nothing of its layers: for steps that nobody looks at.

    Args:
        step: See ``pruned``.
    """
    graph, values = fx.Graph(), dict[fx.Node, fx.Node]()
    for node in step.graph.nodes:
        if node.op == "output":
            graph.output(fx.map_arg((*node.args[0][:-1], ()), values.__getitem__))
        else:
            values[node] = graph.node_copy(node, values.__getitem__)
    module = fx.GraphModule(step, graph, type(step).__name__)
    module.graph.eliminate_dead_code()
    module.recompile()
    return module


def _only(values: Sequence[Any], kept: Sequence[bool]) -> tuple[Any, ...]:
    return tuple(value for value, keep in zip(values, kept, strict=True) if keep)
