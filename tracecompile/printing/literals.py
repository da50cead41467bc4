"""Values that a graph holds beside its nodes, as Python."""

from __future__ import annotations

import builtins
import json
from collections.abc import Callable
from typing import Any

import torch
from torch import fx

from tracecompile.printing.layout import ATOM, UNARY, Expression, call, named, sequence

Leaf = Callable[[Any], Expression]
"""Prints what is no literal: nodes, and values that only a name can stand for."""


def literal(value: Any, leaf: Leaf) -> Expression:
    """Returns a value as an expression that makes it again, bit for bit."""
    if isinstance(value, fx.Node):
        return leaf(value)
    if type(value) in (int, float, complex):
        return _number(value, leaf)
    if value is None or value is Ellipsis or type(value) is bool:
        return Expression("..." if value is Ellipsis else repr(value))
    if type(value) is str:
        return Expression(json.dumps(value, ensure_ascii=False) if value.isprintable() else repr(value))
    if isinstance(value, (torch.dtype, torch.layout, torch.memory_format)):
        return Expression(str(value))
    if isinstance(value, torch.device):
        return Expression(f'torch.device("{value}")')
    name = str(getattr(value, "__name__", ""))
    if isinstance(value, type) and vars(builtins).get(name) is value:
        return Expression(name)
    return _container(value, leaf)


def _number(value: Any, leaf: Leaf) -> Expression:
    text = repr(value)
    if isinstance(value, complex):
        return Expression(f"complex({value.real!r}, {value.imag!r})") if "n" not in text else leaf(value)
    if "n" in text:  # inf, -inf, nan
        return Expression(f'float("{text}")')
    return Expression(text, UNARY if text.startswith("-") else ATOM)


def _container(value: Any, leaf: Leaf) -> Expression:
    if isinstance(value, tuple) and not hasattr(value, "_fields"):
        return sequence("(", [literal(item, leaf) for item in value], ")")
    if isinstance(value, list):
        return sequence("[", [literal(item, leaf) for item in value], "]")
    if isinstance(value, dict):
        items = [(literal(key, leaf), literal(item, leaf)) for key, item in value.items()]
        return sequence("{", [Expression(f"{key.text}: {item.text}") for key, item in items], "}")
    if isinstance(value, slice):
        return call("slice", [literal(part, leaf) for part in (value.start, value.stop, value.step)])
    if isinstance(value, range):
        return call("range", [literal(part, leaf) for part in (value.start, value.stop, value.step)])
    return leaf(value)


def arguments(args: Any, kwargs: Any, leaf: Leaf) -> list[Expression]:
    """Returns the arguments of a call."""
    return [
        *(literal(value, leaf) for value in args),
        *(named(key, literal(value, leaf)) for key, value in kwargs.items()),
    ]


def subscript(index: Any, leaf: Leaf) -> str:
    """Returns what stands between the brackets of ``x[...]``."""
    if isinstance(index, tuple) and len(index) > 1:
        return ", ".join(
            subscript(part, leaf) if not isinstance(part, tuple) else literal(part, leaf).text for part in index
        )
    if not isinstance(index, slice):
        return literal(index, leaf).text
    bounds = [None if part is None else literal(part, leaf) for part in (index.start, index.stop, index.step)]
    texts = ["" if part is None else part.text for part in bounds]
    # A formatter sets the colon apart where a bound is more than a name or a number.
    if all(text.lstrip("-").replace("_", "a").isalnum() for text in texts if text):
        return ":".join(texts if texts[2] else texts[:2])
    parts = texts if texts[2] else texts[:2]
    spaced = parts[0]
    for part in parts[1:]:
        spaced = f"{spaced} : {part}" if part else f"{spaced} :"
    return spaced.strip()
