"""Sizes of whole sequences, and arithmetic on them, as they are at one time step."""

from __future__ import annotations

import operator
from collections.abc import Mapping
from dataclasses import dataclass
from typing import Any, Protocol

from torch import Tensor, fx

from tracecompile.capture.layerwise.layout import Layout


class Sized(Protocol):
    """What has to be known of a whole sequence."""

    @property
    def layout(self) -> Layout:
        """Where its time steps are."""

    @property
    def given(self) -> bool:
        """Whether it is known before the loop."""


@dataclass(frozen=True)
class SizeOf:
    """A size of what belongs to one step of a sequence.

    Attributes:
        source: The whole sequence.
        dim: An axis of one step, without the time axis.
        value: The size on the example.
    """

    source: fx.Node
    dim: int
    value: int


@dataclass(frozen=True)
class Computed:
    """Arithmetic on sizes.

    Attributes:
        node: The same arithmetic on the sizes of whole sequences.
        operands: What it takes at one step.
        value: What it gives on the example.
    """

    node: fx.Node
    operands: tuple[Any, ...]
    value: Any


class Numbers:
    """Knows what number nodes are at one step.

    Args:
        wholes: All whole sequences; filled as they are found.
    """

    def __init__(self, wholes: Mapping[fx.Node, Sized]) -> None:
        self.wholes = wholes

    def at_step(self, node: fx.Node) -> Any:
        """Returns a number, the node itself where it is the same at one step, or how to compute it."""
        if node.target == "size" and len(node.args) == 2 and node.args[0] in self.wholes:
            return self._size(node, node.args[0], node.args[1])
        if node.op != "call_function" or not isinstance(node.meta["val"], (int, float)) or node.kwargs:
            return node
        operands = tuple(self.at_step(each) if isinstance(each, fx.Node) else each for each in node.args)
        if all(one is other for one, other in zip(operands, node.args, strict=True)):
            return node
        if node.target is operator.mul and 1 in operands:
            return operands[1 - operands.index(1)]
        value = node.target(*(number_value(each) for each in operands))  # type: ignore[operator]
        plain = not any(isinstance(each, (fx.Node, SizeOf, Computed)) for each in operands)
        return value if plain else Computed(node, operands, value)

    def _size(self, node: fx.Node, source: Any, dim: Any) -> Any:
        layout = self.wholes[source].layout
        rank = source.meta["val"].dim()
        if not isinstance(dim, int):
            return node
        dim %= rank
        if dim == layout.axis:
            return SizeOf(source, dim, node.meta["val"] // layout.steps) if layout.merged else 1
        if self.wholes[source].given:
            return node
        return SizeOf(source, dim if layout.merged or dim < layout.axis else dim - 1, node.meta["val"])


def number_value(number: Any) -> Any:
    """Returns the value of a number on the example."""
    if isinstance(number, fx.Node):
        value = number.meta["val"]
        assert not isinstance(value, Tensor)
        return value
    return number.value if isinstance(number, (SizeOf, Computed)) else number
