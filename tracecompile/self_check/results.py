"""Whether two runs returned the same, and where in the program the difference was made."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any

from torch import Tensor, fx

from tracecompile.errors import SourceLine
from tracecompile.program import StepProgram


def first_difference(expected: Sequence[Any], found: Sequence[Any]) -> int | None:
    """Returns the position of the first leaf that differs bit for bit; None where none does."""
    pairs = enumerate(zip(expected, found, strict=False))
    others = 0 if len(expected) != len(found) else None
    return next((position for position, pair in pairs if not same(*pair)), others)


def same(one: Any, other: Any) -> bool:
    """Compares two results bit for bit; NaN equals NaN."""
    if not isinstance(one, Tensor) or not isinstance(other, Tensor):
        return type(one) is type(other) and bool(one == other)
    if one.shape != other.shape or one.dtype != other.dtype:
        return False
    return bool(((one == other) | (one.isnan() & other.isnan())).all())


def relative_error(expected: Sequence[Any], found: Sequence[Any]) -> float:
    """Returns how far results are from those of the model, relative to their norm; infinite for other shapes."""
    if len(expected) != len(found):
        return float("inf")
    worst = 0.0
    for one, other in zip(expected, found, strict=True):
        if not isinstance(one, Tensor) or not isinstance(other, Tensor) or not one.is_floating_point():
            worst = worst if same(one, other) else float("inf")
            continue
        if one.shape != other.shape or one.dtype != other.dtype:
            return float("inf")
        error = float((other.detach() - one.detach()).double().norm())
        worst = max(worst, error / max(float(one.detach().double().norm()), 1e-12))
    return worst


def made_by(program: StepProgram, result: int) -> fx.Node | None:
    """Returns the node of the step that one leaf of the result comes from."""
    placeholders = [node for node in program.epilogue.graph.nodes if node.op == "placeholder"]
    output = next(node for node in reversed(program.epilogue.graph.nodes) if node.op == "output")
    leaves = output.args[0]
    waiting = [leaf for leaf in leaves[result : result + 1] if isinstance(leaf, fx.Node)]
    made = next(node for node in reversed(program.step.graph.nodes) if node.op == "output").args[0]
    values = [*made[0], *made[1]]
    while waiting:
        node = waiting.pop()
        if node in placeholders and placeholders.index(node) < len(values):
            made_here: fx.Node = values[placeholders.index(node)]
            return made_here
        waiting += node.all_input_nodes
    return None


def layer_of(program: StepProgram, node: fx.Node | None) -> str:
    """Returns the name of the layer that computes a node."""
    for layer in program.layers:
        if node is not None and (node.name in layer.nodes or node.name in layer.outputs or node.name in layer.states):
            return f"the layer {layer.name}"
    return f"the value {node.name}" if node is not None else "a value that no layer makes"


def line_of(node: fx.Node | None) -> SourceLine | None:
    """Returns the user's line of a node."""
    return None if node is None else node.meta.get("where")
