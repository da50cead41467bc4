"""The statements of a function, from the nodes of a graph."""

from __future__ import annotations

import operator
from collections.abc import Callable, Iterable, Mapping
from typing import Any, Protocol

from torch import fx

from tracecompile.printing.comments import source_comment
from tracecompile.printing.layout import ATOM, INDENT, WIDTH, Expression, call, statement
from tracecompile.printing.literals import arguments, literal, subscript
from tracecompile.printing.naming import Scope, wanted_name, without_number
from tracecompile.printing.operators import is_access, operation
from tracecompile.printing.variables import variable_of
from tracecompile.rules.slopes import WithSlopes

Above = tuple[str, int] | str
"""What a run of lines has in common: a line of the user's source, or what a pass has added it for."""


class Globals(Protocol):
    """What is known outside of a function."""

    def function(self, function: Callable[..., Any]) -> str:
        """Returns the name of a function that is called."""

    def attribute(self, module: fx.GraphModule, target: str) -> str:
        """Returns the expression for what a target of a graph names."""

    def constant(self, value: Any) -> str:
        """Returns the name of a value that is no literal."""


class Body:
    """Writes statements, an expression of the user's as one expression where that changes no order.

    A node that one other node of the same source line reads waits on a stack. What lies on top of the stack in the
    order in which its reader takes it becomes part of the reader's expression: Python evaluates an expression's parts
    from left to right, so every operation still runs in its turn, whatever it does besides. What lies below gets a
    name.

    Attributes:
        lines: What is written so far.
        values: What stands for the nodes that have been written.
    """

    def __init__(
        self, known: Globals, module: fx.GraphModule, scope: Scope, wanted: Mapping[fx.Node, str] | None = None
    ) -> None:
        self.known, self.module, self.scope = known, module, scope
        self.wanted = wanted or {}
        self.lines: list[str] = []
        self.values: dict[fx.Node, Expression] = {}
        self.waiting: list[fx.Node] = []
        self.above: Above | None = None
        self.arguments: dict[str, fx.Node] = {}
        self.order = {node: place for place, node in enumerate(module.graph.nodes)}

    def name(self, node: fx.Node) -> str:
        """Gives a node a name: that of an argument that it takes the place of, once nothing reads this any more."""
        wanted = self.wanted.get(node) or wanted_name(node)
        replaces = node in self.wanted and node.op != "placeholder"
        argument = self.arguments.get(wanted) if replaces else None
        if argument is None:
            taken = self.scope.take(wanted)
        elif all(self.order[user] <= self.order[node] for user in argument.users):
            taken = wanted
            del self.arguments[wanted]
        else:
            taken = self.scope.take(f"{wanted}_next")
        if node.op == "placeholder":
            self.arguments[taken] = node
        self.values[node] = Expression(taken)
        return taken

    def write(self, nodes: Iterable[fx.Node]) -> None:
        """Writes nodes in their order; those that are known already are passed over."""
        nodes = [node for node in nodes if node not in self.values]
        inside = set(nodes)
        for node in nodes:
            if node.op == "output":
                self._flush()
                self.lines += statement("return ", literal(node.args[0], self._leaf))
            elif node.op == "get_attr":
                self.values[node] = Expression(self.known.attribute(self.module, str(node.target)))
            elif node not in self.values:
                self._write(node, inside)
        self._flush()

    def _write(self, node: fx.Node, inside: set[fx.Node]) -> None:
        parts = [source for source in _read(node) if source in self.waiting]
        count = self._in_order(parts)
        if count < len(parts):
            self._flush(count)
        value = self._expression(node)
        if parts and self._too_long(node, value):
            self._flush()
            value = self._expression(node)
        self.waiting = [waits for waits in self.waiting if waits not in parts]
        if self._may_wait(node, value, inside):
            self.values[node] = value
            self.waiting.append(node)
            return
        self._flush()
        self._assign(node, value)

    def _too_long(self, node: fx.Node, value: Expression) -> bool:
        """Tells whether a value should be taken apart; in the lines of a pass a call may have a line of arguments."""
        if "pass" in node.meta and value.bracket is not None and value.bracket.shared:
            return len(value.text) - len(value.bracket.opening) + 2 * len(INDENT) > WIDTH
        return len(value.text) + len(self.wanted.get(node) or wanted_name(node)) + len(INDENT) + 8 > WIDTH

    def _may_wait(self, node: fx.Node, value: Expression, inside: set[fx.Node]) -> bool:
        (reader, *others) = node.users or (None,)
        if reader is None or others or reader not in inside or reader.op == "output":
            return False
        most = WIDTH // 2 if "pass" not in node.meta else WIDTH - 5 * len(INDENT)
        return _line(reader) == _line(node) and _read(reader).count(node) == 1 and len(value.text) < most

    def _in_order(self, parts: list[fx.Node]) -> int:
        """Returns how many of the parts lie on top of the stack as they are read."""
        for count in range(len(parts), 0, -1):
            top = self.waiting[-count:]
            if [part for part in parts if part in top] == top:
                return count
        return 0

    def _flush(self, kept: int = 0) -> None:
        """Writes what waits, but for the top of the stack, each as a statement of its own."""
        below = len(self.waiting) - kept
        waiting, self.waiting = self.waiting[:below], self.waiting[below:]
        for node in waiting:
            self._assign(node, self.values[node])

    def _assign(self, node: fx.Node, value: Expression) -> None:
        self._comment(node)
        results = self._results(node)
        if results is not None:
            self.lines += statement(f"{', '.join(results)} = ", value)
        elif node.users or value.bracket is None:
            self.lines += statement(f"{self.name(node)} = ", value)
        else:
            self.lines += statement("", value)

    def _comment(self, node: fx.Node) -> None:
        """Says above a run of lines which line of the user's they are of, or which pass has added them."""
        line = _line(node)
        if line is not None and line != self.above:
            where = node.meta.get("where")
            self.lines.append(f"{INDENT}{f'# {line}' if where is None else source_comment(where)}")
            self.above = line

    def _results(self, node: fx.Node) -> list[str] | None:
        """Names the value of an operation and its slopes, which come as one tuple."""
        module = self.module.get_submodule(str(node.target)) if node.op == "call_module" else None
        picked = [user for user in node.users if user.target is operator.getitem and user.args[0] is node]
        if not isinstance(module, WithSlopes) or len(picked) != len(node.users):
            return None
        value = without_number(str(node.target).removeprefix("slopes_"))
        names = ["_"] * (1 + len(module.wanted))
        for user in sorted(picked, key=lambda user: int(str(user.args[1]))):
            place = int(str(user.args[1]))
            if names[place] == "_":
                plain = (variable_of(user) or value) if place == 0 else f"d_{value}"
                names[place] = self.scope.take(self.wanted.get(user) or plain)
            self.values[user] = Expression(names[place])
        return names

    def _expression(self, node: fx.Node) -> Expression:
        given = arguments(node.args, node.kwargs, self._leaf)
        if node.op == "call_module":
            return call(self.known.attribute(self.module, str(node.target)), given)
        if node.op == "call_method":
            return call(f"{given[0].within(ATOM)}.{node.target}", given[1:])
        if is_access(node):
            owner, place = given[0].within(ATOM), node.args[1]
            read = f"[{subscript(place, self._leaf)}]" if node.target is operator.getitem else f".{place}"
            return Expression(f"{owner}{read}")
        function: Any = node.target
        written = None if node.kwargs else operation(function, given)
        return written or call(self.known.function(function), given)

    def _leaf(self, value: Any) -> Expression:
        return self.values[value] if isinstance(value, fx.Node) else Expression(self.known.constant(value))


def _read(node: fx.Node) -> list[fx.Node]:
    """Returns what a node reads, in the order of evaluation, as often as it reads it."""
    found: list[fx.Node] = []
    fx.node.map_arg((node.args, node.kwargs), found.append)
    return found


def _line(node: fx.Node) -> Above | None:
    where = node.meta.get("where")
    return node.meta.get("pass") if where is None else (where.file, where.line)
