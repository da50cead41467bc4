"""What a program carries beside its states: what its text calls it, what it begins with, and where it is folded."""

from __future__ import annotations

from collections import Counter
from collections.abc import Iterable, Mapping, Sequence
from typing import Any

from torch import fx

from tracecompile.graphs.glue import accruals_of
from tracecompile.layers import Accrual, Layer
from tracecompile.printing.layout import INDENT, Expression, call, names, sequence, statement
from tracecompile.printing.naming import Scope, wanted_name
from tracecompile.printing.page import Page, signature
from tracecompile.program import StepProgram
from tracecompile.rules.measured.lines import FROM, SCALED

HELPERS = ("start", "fold", "CARRIED")
"""What stands in the text beside the functions of graphs, where something is carried."""
ACCUMULATION = "tracecompile.rules.accumulation"


class Carried:
    """The traces, tangents and responses of a program, and the functions that begin and fold them.

    Attributes:
        accruals: What is carried, traces first, then by layer.
        names: What the text calls each: after the variables that it is of, where no other is called so.
    """

    def __init__(self, page: Page, program: StepProgram) -> None:
        """Notes what these functions import."""
        self.page, self.program = page, program
        self.nodes = {node.name: node for node in program.step.graph.nodes}
        self.accruals = (*program.traces_kept, *(a for layer in program.layers for a in accruals_of(layer)))
        wanted = {accrual.name: self._wanted(accrual) for accrual in self.accruals}
        count = Counter(wanted.values())
        self.names = {name: found if count[found] == 1 else name for name, found in wanted.items()}
        if self.accruals:
            page.imports.modules.add("torch")
        if any(accrual.role == "tangent" for accrual in self.accruals):
            page.imports.take(ACCUMULATION, "accumulator_dtype")

    def _wanted(self, accrual: Accrual) -> str:
        first, second = accrual.pair
        if accrual.role == "trace":
            # What follows is its statistic, or its decay where there are several.
            return f"trace_{self.called(first)}{accrual.name.removeprefix(f'trace_{first}')}"
        of, by = (second, first) if accrual.role == "tangent" else (first, second)
        return self._of_pair(accrual.role, of, by)

    def _of_pair(self, role: str, of: str, by: str) -> str:
        how = {FROM: "from", SCALED: "by_scaled"}.get(f"{by.partition(':')[0]}:", "by")
        return f"{role}_{self.called(of)}_{how}_{self.called(by.rpartition(':')[2])}"

    def called(self, name: str) -> str:
        """Returns what a value of the step would be called, by the name of its node."""
        return wanted_name(self.nodes[name])

    def wanted(
        self, module: fx.GraphModule, moved: Mapping[str, fx.Node], layers: Sequence[Layer], groups: Iterable[Any]
    ) -> dict[fx.Node, str]:
        """Names what a graph in trace form takes, makes and returns of what is carried, and its derivatives.

        Args:
            module: The graph.
            moved: What it returns for each that it carries, by the name of that.
            layers: Whose lines it has.
            groups: The derivatives that it returns, for each of these layers.
        """
        nodes = list(module.graph.nodes)
        found = {n: self.names[n.target] for n in nodes if n.op == "placeholder" and n.target in self.names}
        for name, node in moved.items():
            found.setdefault(node, self.names[name])
        for layer, group in zip(layers, groups, strict=True):
            for (of, by), row in layer.response.rows.items() if layer.response is not None else ():
                # A row that is a number is the same for every neuron and step, and no part of the graph.
                if isinstance(row, int) and group[row].op != "placeholder":
                    result = of if of in self.nodes else layer.states[int(of.removeprefix("next:"))]
                    found.setdefault(group[row], f"d_{self.called(result)}_d_{self.called(by)}")
        for node in nodes:
            if "means" in node.meta:
                found.setdefault(node, self._of_pair(*node.meta["means"]))
        return found

    # What ``run`` calls.

    def start(self) -> list[str]:
        """Returns the lines of the function that makes what nothing has accrued to."""
        scope = Scope(self.page.scope)
        placeholders = [carry.placeholder for carry in self.program.carries]
        states = {name: scope.take(self.called(name)) for name in placeholders}
        lines, made = [], []
        for accrual in self.accruals:
            made.append(scope.take(self.names[accrual.name]))
            lines += statement(f"{made[-1]} = ", self._nothing(accrual, states))
        return [
            *signature("start", states.values()),
            f'{INDENT}"""What is carried beside the states where nothing has accrued: a sum takes the shape of what is'
            ' added."""',
            *lines,
            *statement("return ", sequence("(", names(made), ")")),
        ]

    @staticmethod
    def _nothing(accrual: Accrual, states: Mapping[str, str]) -> Expression:
        if accrual.role != "tangent":
            return call("torch.zeros", names(["()"]))
        variable, state = accrual.pair
        like = "ones_like" if variable == f"{FROM}{state}" else "zeros_like"
        return call(f"torch.{like}", names([states[state], f"dtype=accumulator_dtype({states[state]}.dtype)"]))

    def fold(self) -> list[str]:
        """Returns the lines of the function that leaves in the record what has accrued."""
        carried = [Expression(f'"{self.names[accrual.name]}"') for accrual in self.accruals]
        return [
            *statement("CARRIED = ", sequence("(", carried, ")"), 0),
            "",
            "",
            *signature("fold", ["record", "accrued"]),
            f'{INDENT}"""Leaves what has accrued over a bin in the record: a list by name, with one entry a bin."""',
            f"{INDENT}for name, total in zip(CARRIED, accrued, strict=True):",
            f"{INDENT * 2}record.setdefault(name, []).append(total)",
        ]
