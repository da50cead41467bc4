"""Writes through a mask, as a choice between two values for every element.

``v[z > 0] = 0.0`` says of every neuron by itself what becomes of it, as ``torch.where`` does; written as a copy with
some elements replaced it would be an operation on all of them together.
"""

from __future__ import annotations

from typing import Any

import torch
from torch import fx

from tracecompile.capture.tracing.writer import Writer
from tracecompile.operations import Fact, operation_of
from tracecompile.operations.cone import cone


def masked_write(recorder: Writer, tensor: torch.Tensor, index: Any, value: Any) -> fx.Node | None:
    """Returns the node of what ``tensor[index] = value`` leaves, where the index is a mask; None where it is none.

    The value may be a number, something that fits every element, or what the same mask selects (``v[m] = u[m]``, also
    with arithmetic on it).
    """
    mask = _mask(index, tensor)
    if mask is None:
        return None
    node, mask_node = recorder.node_of(tensor), recorder.node_of(mask)
    choice = _Choice(recorder, mask_node, tensor)
    if isinstance(value, torch.Tensor):
        other = choice.full(recorder.node_of(value))
        if other is None:
            return None
        if other.meta["val"].dtype != tensor.dtype:
            other = choice.add("call_method", "to", other, tensor.dtype)
        return choice.add("call_function", torch.where, choice.broadcast(), other, node)
    if isinstance(value, float) and not tensor.is_floating_point():
        return None
    number = recorder.create_arg(value)
    return choice.add("call_method", "masked_fill", node, choice.broadcast(), number) if _is_number(value) else None


def _mask(index: Any, tensor: torch.Tensor) -> torch.Tensor | None:
    if isinstance(index, (tuple, list)) and len(index) == 1:
        (index,) = index
    if not isinstance(index, torch.Tensor) or index.dtype != torch.bool or not index.ndim:
        return None
    return index if tensor.shape[: index.ndim] == index.shape else None


def _is_number(value: Any) -> bool:
    return isinstance(value, (bool, int, float))


class _Choice:
    """Writes the nodes of one choice."""

    def __init__(self, recorder: Writer, mask: fx.Node, tensor: torch.Tensor) -> None:
        self.recorder, self.mask, self.tensor = recorder, mask, tensor

    def add(self, op: str, target: Any, *args: Any) -> fx.Node:
        """Adds a node with its value."""
        values = fx.map_arg(args, lambda node: node.meta["val"])
        with torch.no_grad():
            value = getattr(values[0], target)(*values[1:]) if op == "call_method" else target(*values)
        return self.recorder.add_node(op, target, args, {}, value)

    def broadcast(self) -> fx.Node:
        """Returns the mask with an axis for every one of the tensor's."""
        mask = self.mask
        for _ in range(self.tensor.ndim - mask.meta["val"].ndim):
            mask = self.add("call_method", "unsqueeze", mask, -1)
        return mask

    def full(self, value: fx.Node) -> fx.Node | None:
        """Returns a value for every element of the tensor, of which the mask selects what is written."""
        lifted = self.lifted(value)
        if lifted is not None:
            return lifted
        rank = value.meta["val"].ndim
        if rank <= self.tensor.ndim - self.mask.meta["val"].ndim:
            return value
        single = value.meta["val"].shape == (1,) and not any(_selects(node) for node in cone([value]))
        return value if single else None

    def lifted(self, value: fx.Node) -> fx.Node | None:
        """Undoes the selection by the mask: ``2 * u[mask]`` is what the mask selects of ``2 * u``."""
        selected = operation_of(value).name in ("getitem", "masked_select")
        if selected and len(value.args) == 2 and _same(value.args[1], self.mask):
            whole = value.args[0]
            return whole if isinstance(whole, fx.Node) and whole.meta["val"].shape == self.tensor.shape else None
        facts = operation_of(value).facts
        # A quotient may have no derivative where the mask does not select.
        alone = Fact.ELEMENTWISE in facts and facts & (Fact.LINEAR | Fact.PRODUCT) and Fact.TAKES_SIZE not in facts
        if not alone or value.kwargs:
            return None
        operands = [self._operand(operand) for operand in value.args]
        if None in operands or not any(isinstance(operand, fx.Node) for operand in operands):
            return None
        return self.add(value.op, value.target, *operands)

    def _operand(self, operand: Any) -> Any:
        if not isinstance(operand, fx.Node):
            return operand
        value = operand.meta["val"]
        return operand if isinstance(value, torch.Tensor) and not value.ndim else self.lifted(operand)


def _same(one: Any, other: Any) -> bool:
    """Tells whether two nodes are one value: ``v[z > 0] = u[z > 0]`` compares twice."""
    if not isinstance(one, fx.Node) or not isinstance(other, fx.Node) or one is other:
        return one is other or (not isinstance(one, fx.Node) and type(one) is type(other) and bool(one == other))
    alike = (one.op, one.target, len(one.args)) == (other.op, other.target, len(other.args))
    pure = one.op in ("call_function", "call_method") and not one.kwargs and not other.kwargs
    return alike and pure and all(_same(a, b) for a, b in zip(one.args, other.args, strict=True))


def _selects(node: fx.Node) -> bool:
    operation = operation_of(node)
    if Fact.SELECTS in operation.facts:
        return True
    indices = node.args[1] if operation.name == "getitem" else None
    parts = indices if isinstance(indices, tuple) else (indices,)
    return any(isinstance(part, fx.Node) and getattr(part.meta["val"], "dtype", None) == torch.bool for part in parts)
