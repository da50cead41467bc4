"""What ``run`` collects from the steps, and the structure of what it returns."""

from __future__ import annotations

from collections.abc import Iterator, Sequence

from torch.utils import _pytree as pytree

from tracecompile.printing.layout import INDENT, Expression, call, names, sequence, statement
from tracecompile.printing.page import Page
from tracecompile.program import StepOutput, StepProgram

TREES = "torch.utils._pytree"


class Result:
    """The return value of the user's forward, put together from the leaves that the epilogue returns."""

    def __init__(self, page: Page, program: StepProgram) -> None:
        """Notes what the expression needs."""
        self.page, self.spec, self.more = page, program.result, bool(program.statistics)
        self.key = ""
        self.value = _of_spec(self.spec, iter(range(self.spec.num_leaves)))
        if self.value is None:
            page.imports.take(TREES, "tree_unflatten")
            self.key = page.references.constant(self.spec, "result")

    def lines(self) -> list[str]:
        """Returns the last lines of ``run``."""
        if self.value is not None:
            return statement("return ", self.value)
        leaves = f"leaves[:{self.spec.num_leaves}]" if self.more else "leaves"
        return statement("return ", call("tree_unflatten", names([leaves, self.page.names[self.key]])))


def _of_spec(spec: pytree.TreeSpec, places: Iterator[int]) -> Expression | None:
    """Returns a structure as an expression, None for one of the user's own types."""
    if spec.is_leaf():
        return Expression(f"leaves[{next(places)}]")
    items: list[Expression] = []
    for child in spec.children():
        item = _of_spec(child, places)
        if item is None:
            return None
        items.append(item)
    if spec.type is tuple:
        return sequence("(", items, ")")
    if spec.type is list:
        return sequence("[", items, "]")
    if spec.type is dict and all(isinstance(key, str) and key.isidentifier() for key in spec.context):
        pairs = zip(spec.context, items, strict=True)
        return sequence("{", [Expression(f'"{key}": {item.text}') for key, item in pairs], "}")
    return None


def collected(outputs: Sequence[StepOutput]) -> tuple[list[str], list[str]]:
    """Returns what the epilogue receives of the outputs of all steps, and the lines that prepare it."""
    found, lines = [], []
    for place, output in enumerate(outputs):
        chosen = output.chosen
        values = f"[outputs[{place}] for outputs in steps]"
        if chosen is not None and chosen.bounds is not None:
            start, stop, step = ("" if bound is None else str(bound) for bound in chosen.bounds)
            values = f"[outputs[{place}] for outputs in steps[{start}:{stop}:{step}]]"
        elif chosen is not None:
            numbers = names(str(number) for number in sorted(chosen.numbers))
            lines += statement(f"chosen_{place} = ", sequence("[", numbers, "]"))
            values = f"[steps[t][{place}] for t in chosen_{place} if t < len(steps)]"
        if output.collect == "sum":
            lines.append(f"{INDENT}values_{place} = {values}")
            # Not sum(values): that begins with 0, and 0 + -0.0 is 0.0.
            total = f"sum(values_{place}[1:], values_{place}[0])"
            none = f" if values_{place} else torch.zeros_like(outputs[{place}])"
            found.append(total if chosen is None else total + none)
        else:
            found.append(f"torch.stack({values})" if output.collect == "stack" else f"outputs[{place}]")
    return found, lines
