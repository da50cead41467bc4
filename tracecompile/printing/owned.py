"""What a program owns besides the model, made in the text itself where it can be.

A surrogate function that is written out is two functions of the text; an operation with its slopes is made of the
operation. All else is bound from outside.
"""

from __future__ import annotations

from typing import TYPE_CHECKING, Any

from torch import fx

from tracecompile.printing.layout import Expression, call
from tracecompile.printing.literals import literal
from tracecompile.rules.formulas import Surrogate
from tracecompile.rules.slopes import WithSlopes

if TYPE_CHECKING:
    from tracecompile.printing.page import Page


def add_parts(page: Page, value: Any, name: str) -> None:
    """Adds to a page what a constant is made of, and imports what makes it."""
    if is_formula(value):
        page.imports.take(Surrogate.__module__, Surrogate.__name__)
        note = f"# Surrogate function {value.function.__name__}: its "
        page.add(value.value, f"{name}_value", notes=(f"{note}value.",))
        page.add(value.gradient, f"{name}_gradient", notes=(f"{note}gradient, for a gradient of the value.",))
    elif isinstance(value, WithSlopes) and _is_known(page, value):
        page.imports.take(WithSlopes.__module__, WithSlopes.__name__)
        if value.kind != "call_method":
            page.function(value.operation)


def made(page: Page, value: Any) -> str | None:
    """Returns the expression that makes a constant, None for one that is bound from outside."""
    if is_formula(value):
        parts = [Expression(page.functions[graph].name) for graph in (value.value, value.gradient)]
        given = [literal(value.function.__name__, _no_leaf), literal(len(value.template), _no_leaf), *parts]
        return call(Surrogate.__name__, given).text
    if isinstance(value, WithSlopes) and _is_known(page, value):
        operation: Any = value.operation
        first = literal(operation, _no_leaf) if isinstance(operation, str) else Expression(page.function(operation))
        others = [literal(each, _no_leaf) for each in (value.kind, value.wanted)]
        return call(WithSlopes.__name__, [first, *others]).text
    return None


def is_formula(value: Any) -> bool:
    """Tells whether a value is a surrogate function whose formulas are graphs."""
    return isinstance(value, Surrogate) and all(
        isinstance(part, fx.GraphModule) for part in (value.value, value.gradient)
    )


def _is_known(page: Page, slopes: WithSlopes) -> bool:
    """Tells whether the operation is no module of the model: the model is not there yet when the text is loaded."""
    program = page.references.program
    own = () if program is None else {id(module) for module in program.root.modules()}
    return id(slopes.operation) not in own


def _no_leaf(value: Any) -> Expression:
    raise TypeError(f"{value!r} is no literal")
