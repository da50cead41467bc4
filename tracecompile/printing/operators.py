"""Functions of Python's ``operator`` module as the operators that they are."""

from __future__ import annotations

import builtins
import operator
import re
from collections.abc import Callable
from typing import Any

from torch import fx

from tracecompile.printing.layout import AND, ATOM, COMPARISON, OR, POWER, PRODUCT, SHIFT, SUM, UNARY, XOR, Expression

BINARY: dict[Callable[..., Any], tuple[str, int]] = {
    operator.add: ("+", SUM),
    operator.sub: ("-", SUM),
    operator.mul: ("*", PRODUCT),
    operator.truediv: ("/", PRODUCT),
    operator.floordiv: ("//", PRODUCT),
    operator.mod: ("%", PRODUCT),
    operator.matmul: ("@", PRODUCT),
    operator.lshift: ("<<", SHIFT),
    operator.rshift: (">>", SHIFT),
    operator.and_: ("&", AND),
    operator.xor: ("^", XOR),
    operator.or_: ("|", OR),
    operator.eq: ("==", COMPARISON),
    operator.ne: ("!=", COMPARISON),
    operator.lt: ("<", COMPARISON),
    operator.le: ("<=", COMPARISON),
    operator.gt: (">", COMPARISON),
    operator.ge: (">=", COMPARISON),
}
UNARIES: dict[Callable[..., Any], str] = {operator.neg: "-", operator.pos: "+", operator.invert: "~"}
_SIMPLE = re.compile(r"-?[\w.]+")


def operation(function: Callable[..., Any], operands: list[Expression]) -> Expression | None:
    """Returns an operator with its operands, None for what has none.

    Sums are not associative in floating point: the right operand of an operator of its own level keeps its
    parentheses, and so do both operands of a comparison, which Python would chain.
    """
    if function in UNARIES and len(operands) == 1:
        return Expression(f"{UNARIES[function]}{operands[0].within(POWER)}", UNARY)
    if len(operands) != 2:
        return None
    left, right = operands
    if function is operator.pow:
        texts = left.within(ATOM), right.within(POWER) if right.binding != UNARY else right.text
        hugging = all(_SIMPLE.fullmatch(text) for text in texts)
        return Expression(("**" if hugging else " ** ").join(texts), POWER)
    if function not in BINARY:
        return None
    sign, binding = BINARY[function]
    first = binding - 1 if binding == COMPARISON else binding
    return Expression(f"{left.within(first)} {sign} {right.within(binding - 1)}", binding)


def is_written(node: fx.Node) -> bool:
    """Tells whether a node is written without the name of its function."""
    if node.kwargs:
        return False
    return operation(node.target, [Expression("")] * len(node.args)) is not None or is_access(node)  # type: ignore[arg-type]


def is_access(node: fx.Node) -> bool:
    """Tells whether a node is an item or an attribute of a value: ``x[0]``, ``x.ndim``."""
    name = node.args[1] if len(node.args) == 2 else None
    attribute = node.target is builtins.getattr and isinstance(name, str) and name.isidentifier()
    return not node.kwargs and (node.target is operator.getitem or attribute)
