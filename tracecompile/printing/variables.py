"""The variable that the user gave a value to.

Capture keeps for every node the stretches of source text of the calls that led to it. Where the innermost stretch is
all that an assignment assigns, the value is that variable; where it is all that a function returns, the value is that
of the call one frame further out. Anything else has no name: a guess would mislead.
"""

from __future__ import annotations

import ast
import linecache
from functools import lru_cache
from typing import Any

from torch import fx

VARIABLE = "variable"
"""Key of a node's ``meta`` for the name, in programs whose source is not here."""

Span = tuple[int | None, int | None, int | None, int | None]


class _Spans(ast.NodeVisitor):
    """Where a file assigns to one name, and where it returns."""

    def __init__(self) -> None:
        self.assigned: dict[Span, str] = {}
        self.returned: set[Span] = set()

    def visit_Assign(self, node: ast.Assign) -> None:
        if len(node.targets) == 1:
            self._assign(node.targets[0], node.value)
        self.generic_visit(node)

    def visit_AnnAssign(self, node: ast.AnnAssign) -> None:
        if node.value is not None:
            self._assign(node.target, node.value)
        self.generic_visit(node)

    def visit_AugAssign(self, node: ast.AugAssign) -> None:
        name = _name(node.target)
        if name is not None:
            self.assigned[_span(node)] = name
        self.generic_visit(node)

    def visit_Return(self, node: ast.Return) -> None:
        if node.value is not None:
            self.returned.update(map(_span, _branches(node.value)))
        self.generic_visit(node)

    def _assign(self, target: ast.expr, value: ast.expr) -> None:
        if isinstance(target, ast.Tuple) and isinstance(value, ast.Tuple) and len(target.elts) == len(value.elts):
            for one, other in zip(target.elts, value.elts, strict=True):
                self._assign(one, other)
        elif (name := _name(target)) is not None:
            self.assigned.update((_span(branch), name) for branch in _branches(value))


def _branches(value: ast.expr) -> list[ast.expr]:
    return [*_branches(value.body), *_branches(value.orelse)] if isinstance(value, ast.IfExp) else [value]


def _name(target: ast.expr) -> str | None:
    if isinstance(target, ast.Attribute):
        return target.attr.strip("_") or None
    return (target.id.strip("_") or None) if isinstance(target, ast.Name) else None


def _span(node: ast.AST) -> Span:
    found: Any = node
    return found.lineno, found.end_lineno, found.col_offset, found.end_col_offset


@lru_cache(maxsize=256)
def _spans(file: str) -> _Spans:
    spans = _Spans()
    try:
        spans.visit(ast.parse("".join(linecache.getlines(file))))
    except (SyntaxError, ValueError, RecursionError):
        return _Spans()
    return spans


def variable_of(node: fx.Node) -> str | None:
    """Returns the name of the user's variable that holds a value, None where there is none."""
    if VARIABLE in node.meta:
        return str(node.meta[VARIABLE])
    place = node.meta.get("place")
    for file, _, span in reversed(getattr(place, "frames", ())):
        spans = _spans(file)
        if span in spans.assigned:
            return spans.assigned[span]
        if span not in spans.returned:
            return None
    return None
