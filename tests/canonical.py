"""The canonical form of a StepProgram: equal for two programs that are the same up to names."""

from __future__ import annotations

from typing import Any

import torch
from torch import fx

from tracecompile.program import StepProgram, step_results


def canonical(program: StepProgram, given: tuple[Any, ...]) -> tuple[Any, ...]:
    """Returns the step in the order in which its outputs and, through them, its states are reached.

    Names, the order of independent statements, the time axis and what is collected play no part: those belong to the
    loop and to the user's variables. Whether a state starts at zero does.

    Args:
        given: The leaves of an example call.
    """
    return _Canonical(program, given).form()


class _Canonical:
    def __init__(self, program: StepProgram, given: tuple[Any, ...]) -> None:
        self.program = program
        self.outputs, following = step_results(program.step)
        names = [carry.placeholder for carry in program.carries]
        self.following = dict(zip(names, following, strict=True))
        with torch.no_grad():
            initial = program.prologue(*given)[2]
        self.starts_at_zero = {
            name: value is None or not bool(value.any()) for name, value in zip(names, initial, strict=True)
        }
        self.number: dict[fx.Node, int] = {}
        self.owners: dict[str, int] = {}
        self.rows: list[tuple[Any, ...]] = []
        self.states: list[str] = []

    def form(self) -> tuple[Any, ...]:
        results = [self.visit(node) for node in self.outputs]
        carried: list[tuple[int, bool]] = []
        while len(carried) < len(self.states):
            name = self.states[len(carried)]
            carried.append((self.visit(self.following[name]), self.starts_at_zero[name]))
        return tuple(self.rows), tuple(results), tuple(carried)

    def visit(self, node: fx.Node) -> int:
        if node not in self.number:
            row = self.row(node)
            self.number[node] = len(self.rows)
            self.rows.append(row)
        return self.number[node]

    def row(self, node: fx.Node) -> tuple[Any, ...]:
        if node.op == "placeholder":
            if node.name not in self.following:
                return ("input",)
            self.states.append(node.name)
            return ("state", len(self.states) - 1)
        arguments = repr(fx.map_arg((node.args, node.kwargs), lambda used: f"%{self.visit(used)}"))
        target: Any = node.target
        if node.op == "get_attr":
            target = ("tensor", tuple(self.program.resolve(str(node.target)).shape), self.owner(str(node.target)))
        elif node.op == "call_module":
            module = self.program.resolve(str(node.target))
            target = (type(module).__name__, module.extra_repr(), self.owner(str(node.target)))
        return node.op, target if isinstance(target, tuple) else str(target).partition(" at ")[0], arguments

    def owner(self, target: str) -> int:
        """Numbers modules and parameters in the order in which they are reached."""
        return self.owners.setdefault(target, len(self.owners))
