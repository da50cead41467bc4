"""A step of a unit in elementary operations: what is compiled, and what tells whether it was compiled before."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any

import torch
from torch import Tensor, fx
from torch.fx.experimental.proxy_tensor import make_fx
from torch.fx.node import map_arg
from torch.utils import _pytree as pytree

from tracecompile.rules.written import draws_random_numbers
from tracecompile.runtime.engine.flat import Layout

LARGEST_CONSTANT = 64
"""Elements of a constant in a traced step up to which cores that have it are compared by its values."""


class Untraceable(Exception):
    """A step cannot be compiled; its text is the reason."""


@dataclass(frozen=True)
class Traced:
    """One step of a unit in elementary operations.

    Attributes:
        step: (*values, *carries, *statics, *held, *accrued) to what the unit's step returns.
        text: The same for steps that compute the same, whichever layers they belong to.
        counts: How many answers and derivatives it returns of each layer.
    """

    step: fx.GraphModule
    text: str
    counts: tuple[tuple[int, int], ...]


def trace_step(layout: Layout, arguments: Sequence[Tensor]) -> Traced:
    """Writes one step of a unit in elementary operations, at arguments of a scan."""
    step = make_fx(layout.step_of, tracing_mode="symbolic")(*layout.first_step(arguments))
    if draws_random_numbers(step.graph):
        raise Untraceable("it draws random numbers, which compiled code would draw otherwise")
    *_, of_layers = next(node for node in step.graph.nodes if node.op == "output").args[0]
    return Traced(step, written_out(step), tuple((len(answers), len(rows)) for _, answers, rows in of_layers))


def written_out(step: fx.GraphModule) -> str:
    """Returns text that is the same for graphs that compute the same in the same order.

    Where the tracer puts the sizes that it asks for varies from trace to trace, so they come first here.
    """
    placeholders = [node for node in step.graph.nodes if node.op == "placeholder"]
    sizes = [
        node for node in step.graph.nodes if node.target is torch.ops.aten.sym_size.int and node.args[0] in placeholders
    ]
    sizes.sort(key=lambda node: (placeholders.index(node.args[0]), node.args[1]))
    others = [node for node in step.graph.nodes if node not in placeholders and node not in sizes]
    numbers = {node: f"%{number}" for number, node in enumerate((*placeholders, *sizes, *others))}
    lines = []
    for node, number in numbers.items():
        target = _constant_text(step, node) if node.op == "get_attr" else node.target
        arguments = map_arg((node.args, node.kwargs), lambda value: numbers[value])
        lines.append(f"{number} = {node.op} {'' if node.op == 'placeholder' else target} {arguments}")
    return "\n".join(lines)


def agree(found: Any, expected: Any) -> bool:
    """Tells whether results of a step are the same, NaN being NaN."""
    pairs = list(zip(pytree.tree_leaves(found), pytree.tree_leaves(expected), strict=True))
    if any(one.is_cuda for one, _ in pairs):
        return agree_at_once(pairs)
    # Most are equal bit for bit, and that takes a tenth of the time to see.
    return all(torch.equal(one, other) or torch.allclose(one, other, equal_nan=True) for one, other in pairs)


def agree_at_once(pairs: Sequence[tuple[Tensor, Tensor]]) -> bool:
    """Tells what ``agree`` tells, and waits for a device once, not once for each result."""
    return bool(torch.stack([torch.isclose(one, other, equal_nan=True).all() for one, other in pairs]).all())


def _constant_text(step: fx.GraphModule, node: fx.Node) -> str:
    value = getattr(step, str(node.target))
    small = isinstance(value, Tensor) and value.numel() <= LARGEST_CONSTANT
    return f"{node.target}: {value.dtype} {value.tolist()}" if small else f"{node.target}: object {id(value)}"
