"""Expressions as text with a precedence, and lines that break where a formatter would break them."""

from __future__ import annotations

from collections.abc import Iterable, Sequence
from dataclasses import dataclass

WIDTH = 120
INDENT = "    "

ATOM, POWER, UNARY, PRODUCT, SUM, SHIFT, AND, XOR, OR, COMPARISON = range(10)
"""How loosely an expression binds: an operand that binds looser than its operator is put into parentheses."""


@dataclass(frozen=True)
class Bracket:
    """Where an expression may be broken into lines.

    Attributes:
        opening: All of the text up to the items: ``torch.cat(``.
        items: What stands between the brackets.
        closing: The text after them.
        shared: Whether the items may share one line when they do not fit beside the brackets: those of a call may,
            those of a tuple, a list or an import stand one a line.
    """

    opening: str
    items: tuple[Expression, ...]
    closing: str
    shared: bool


@dataclass(frozen=True)
class Expression:
    """A piece of Python.

    Attributes:
        text: All of it in one line.
        binding: One of the levels above.
        bracket: Its outermost bracket, where it ends with one.
    """

    text: str
    binding: int = ATOM
    bracket: Bracket | None = None

    def within(self, binding: int) -> str:
        """Returns the text as an operand of what binds as tightly as that."""
        return f"({self.text})" if self.binding > binding else self.text


def call(function: str, arguments: Iterable[Expression]) -> Expression:
    """Returns a call."""
    items = tuple(arguments)
    return Expression(f"{function}({_joined(items)})", ATOM, Bracket(f"{function}(", items, ")", True))


def named(keyword: str, value: Expression) -> Expression:
    """Returns a keyword argument."""
    bracket = value.bracket
    if bracket is not None:
        bracket = Bracket(f"{keyword}={bracket.opening}", bracket.items, bracket.closing, bracket.shared)
    return Expression(f"{keyword}={value.text}", ATOM, bracket)


def sequence(opening: str, items: Sequence[Expression], closing: str) -> Expression:
    """Returns a tuple, a list or what else holds its items one a line."""
    comma = "," if opening == "(" and len(items) == 1 else ""
    text = f"{opening}{_joined(items)}{comma}{closing}"
    return Expression(text, ATOM, Bracket(opening, tuple(items), closing, False) if items else None)


def names(texts: Iterable[str]) -> tuple[Expression, ...]:
    """Returns names as expressions."""
    return tuple(Expression(text) for text in texts)


def statement(prefix: str, value: Expression, depth: int = 1, suffix: str = "") -> list[str]:
    """Returns the lines of ``prefix value suffix``, indented.

    A tuple that is returned needs no parentheses where it fits: ``return (a,), (b,)``.
    """
    indent = INDENT * depth
    bracket = value.bracket
    bare = prefix == "return " and bracket is not None and bracket.opening == "(" and len(bracket.items) > 1
    text = value.text[1:-1] if bare else value.text
    flat = f"{indent}{prefix}{text}{suffix}"
    if len(flat) <= WIDTH or bracket is None or not bracket.items:
        return [flat]
    inner = f"{indent}{INDENT}{_joined(bracket.items)}"
    if bracket.shared and len(inner) <= WIDTH:
        body = [inner]
    else:
        body = [line for item in bracket.items for line in statement("", item, depth + 1, ",")]
    return [f"{indent}{prefix}{bracket.opening}", *body, f"{indent}{bracket.closing}{suffix}"]


def _joined(items: Iterable[Expression]) -> str:
    return ", ".join(item.text for item in items)
