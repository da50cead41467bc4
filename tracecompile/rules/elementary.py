"""The derivatives of elementary operations, by what a node calls, whatever its spelling."""

from __future__ import annotations

import operator
from collections.abc import Callable
from typing import Any, Protocol

import torch
from torch import fx

from tracecompile.operations import SAME_NUMBERS, operation_of
from tracecompile.program import example_value

Derivative = fx.Node | int | float
"""A derivative: a node of the graph, or a number that holds for every neuron."""

Tangent = dict[str, Derivative]
"""Derivatives of one value by name of the variable; a missing one is zero."""


class Builder(Protocol):
    """What a rule writes with: the graph that grows, and what is known of the nodes so far."""

    graph: fx.Graph
    value: dict[fx.Node, fx.Node]

    def call(self, function: Callable[..., Any], *args: Any) -> fx.Node:
        """Adds a call."""

    def total(self, *terms: tuple[Derivative, Tangent]) -> Tangent:
        """Returns the sum of tangents, each times a derivative."""

    def of(self, argument: Any) -> Tangent:
        """Returns the tangent of an argument."""

    def times(self, left: Derivative, right: Derivative) -> Derivative:
        """Returns a product."""

    def val(self, argument: Any) -> Any:
        """Returns the value of an argument in the new graph."""


def same(b: Builder, node: fx.Node, a: Any, *rest: Any) -> Tangent:
    """Of an operation that returns its first argument in another form."""
    return dict(b.of(a))


def _add(b: Builder, node: fx.Node, left: Any, right: Any) -> Tangent:
    return b.total((1, b.of(left)), (1, b.of(right)))


def _sub(b: Builder, node: fx.Node, left: Any, right: Any) -> Tangent:
    return b.total((1, b.of(left)), (-1, b.of(right)))


def _rsub(b: Builder, node: fx.Node, left: Any, right: Any) -> Tangent:
    return _sub(b, node, right, left)


def _mul(b: Builder, node: fx.Node, left: Any, right: Any) -> Tangent:
    return b.total((_factor(b, node, right), b.of(left)), (_factor(b, node, left), b.of(right)))


def _factor(b: Builder, node: fx.Node, argument: Any) -> Any:
    """Returns the value of a factor in the precision of its product: a mask of 32 bits may scale a membrane of 64."""
    value = b.val(argument)
    if not isinstance(argument, fx.Node):
        return value
    own, product = example_value(argument), example_value(node)
    mixed = isinstance(own, torch.Tensor) and isinstance(product, torch.Tensor) and own.dtype != product.dtype
    return b.graph.call_method("type_as", (value, b.value[node])) if mixed else value


def _div(b: Builder, node: fx.Node, left: Any, right: Any) -> Tangent:
    one_over = b.call(operator.truediv, 1, _factor(b, node, right)) if isinstance(right, fx.Node) else 1 / right
    terms = [(one_over, b.of(left))]
    if b.of(right):
        terms.append((b.times(-1, b.times(one_over, b.value[node])), b.of(right)))
    return b.total(*terms)


def _neg(b: Builder, node: fx.Node, a: Any) -> Tangent:
    return b.total((-1, b.of(a)))


def _exp(b: Builder, node: fx.Node, a: Any) -> Tangent:
    return b.total((b.value[node], b.of(a)))


def _sigmoid(b: Builder, node: fx.Node, a: Any) -> Tangent:
    value = b.value[node]
    return b.total((b.call(operator.mul, value, b.call(operator.sub, 1, value)), b.of(a)))


def _tanh(b: Builder, node: fx.Node, a: Any) -> Tangent:
    value = b.value[node]
    return b.total((b.call(operator.sub, 1, b.call(operator.mul, value, value)), b.of(a)))


def _where(b: Builder, node: fx.Node, condition: Any, left: Any, right: Any) -> Tangent:
    if node.op == "call_method":  # x.where(condition, y)
        condition, left = left, condition
    found: Tangent = {}
    for variable in {**b.of(left), **b.of(right)}:
        sides = [b.of(side).get(variable, 0) for side in (left, right)]
        filled = [
            b.graph.call_function(torch.full_like, (b.value[node], float(s))) if not isinstance(s, fx.Node) else s
            for s in sides
        ]
        found[variable] = b.call(torch.where, b.val(condition), *filled)
    return found


Rule = Callable[..., Tangent | None]
RULES: dict[str, Rule] = {
    "add": _add, "sub": _sub, "rsub": _rsub, "mul": _mul, "div": _div, "neg": _neg,
    "exp": _exp, "sigmoid": _sigmoid, "tanh": _tanh, "where": _where,
}  # fmt: skip
"""By the names of the table of operations."""


def rule_of(node: fx.Node) -> Rule | None:
    """Returns the rule for what a function or a method computes, None where it has no formula here."""
    operation = operation_of(node)
    return same if operation.facts & SAME_NUMBERS else RULES.get(operation.name)
