"""The function that runs a printed program: prologue, the loop over time, epilogue."""

from __future__ import annotations

from collections.abc import Sequence

from tracecompile.printing.call import CallArguments
from tracecompile.printing.layout import INDENT, Expression, call, names, sequence, statement
from tracecompile.printing.naming import Scope
from tracecompile.printing.page import Function, Page, signature
from tracecompile.printing.references import MODEL, path_in
from tracecompile.printing.results import TREES, Result, collected
from tracecompile.program import StepProgram

LOCALS = (
    *("carried", "inputs", "invariants", "states", "unchanging", "steps", "outputs", "leaves", "leaf", "t", "value"),
    *("record", "length", "bins", "accrued", "drawn"),
)
"""The variables of ``run``; an argument of the same name gets a number."""


class Driver:
    """Prints ``run``, the little that has to be known to run a program on whole sequences or on one step.

    It returns what the model returns. States that the model keeps itself from one call to the next are kept in
    ``carried``, a dict that the caller passes to every call. Where the program carries traces or derivatives, a dict
    that is passed as ``record`` is filled with what has accrued in each bin.
    """

    def __init__(
        self,
        page: Page,
        program: StepProgram,
        prologue: Function,
        statics: Function | None,
        epilogue: Function,
        records: bool,
        draws: Function | None,
    ) -> None:
        """Notes what ``run`` imports and reads; its lines are written when all functions have their names."""
        self.page, self.program = page, program
        self.prologue, self.statics, self.epilogue, self.draws = prologue, statics, epilogue, draws
        self.arguments = CallArguments(program)
        self.records = records
        if records and program.kind == "sequence":
            page.imports.take("tracecompile.runtime.bins", "Bins")
        self.moved = [carry.statistic for carry in program.carries if carry.statistic]
        self.states = len(program.carries) - len(self.moved)
        kept = [carry.kept if program.kind == "sequence" else not carry.explicit for carry in program.carries]
        self.kept = [place for place, keeps in enumerate(kept[: self.states]) if keeps]
        if self.arguments.nested:
            page.imports.take(TREES, "tree_leaves")
        if self.moved or program.statistics or program.kind == "sequence" or draws is not None:
            page.imports.modules.add("torch")
        emitted = program.emitted
        self.before = [self._attribute(path) for path in (emitted.prologue_attributes if emitted else ())]
        self.static = [self._attribute(path) for path in (program.statics.attributes if program.statics else ())]
        self.after = [self._attribute(path) for path in (emitted.epilogue_attributes if emitted else ())]
        self.result = Result(page, program)

    def _attribute(self, path: str) -> str:
        """Returns the expression for an attribute by its path: the model's, or the key of a constant."""
        own = self.program.constants.get(path)
        found = path_in(self.program.root, path) if own is None else None
        return found or f"constants:{self.page.references.constant(self.program.resolve(path), path)}"

    def _read(self, attributes: Sequence[str]) -> list[str]:
        return [
            self.page.names[text.removeprefix("constants:")] if text.startswith("constants:") else text
            for text in attributes
        ]

    def lines(self, step_takes_model: bool, traced_takes_model: bool) -> list[str]:
        """Returns the lines of ``run``, which calls a step and the same in trace form."""
        scope = Scope(self.page.scope)
        for name in (
            *LOCALS,
            *(f"{kind}_{place}" for place in range(len(self.program.outputs)) for kind in ("values", "chosen")),
        ):
            scope.reserve(name)
        parameters = self.arguments.named(scope)
        if self.kept:
            parameters.append("carried=None")
        if self.records:
            parameters.append("record=None")
        body = self._documentation()
        given, lines = self.arguments.leaves(scope)
        body += lines
        body += statement("inputs, invariants, states = ", self.prologue.call([*self._read(self.before), *given]))
        body += self._initial(scope)
        if self.statics is not None:
            body += self._unchanging(self.statics)
        body += self._loop([MODEL] * step_takes_model, [MODEL] * traced_takes_model)
        body += self._end()
        return [*signature("run", [MODEL, *parameters]), *body]

    def _documentation(self) -> list[str]:
        what = "a sequence" if self.program.kind == "sequence" else "one time step"
        text = f'{INDENT}"""Runs {what}; returns what the model returns.'
        more = ["``carried`` keeps the model's own states: pass the same dict to every call."] if self.kept else []
        if self.records:
            more.append(
                "With a dict as ``record`` it runs the step in trace form, and leaves there what accrues, by bins."
            )
        if not more:
            return [f'{text}"""']
        return [text, "", *(f"{INDENT}{line}" for line in more), f'{INDENT}"""']

    def _initial(self, scope: Scope) -> list[str]:
        """Returns the lines that replace what the prologue starts from."""
        lines: list[str] = []
        states = [f"states[{place}]" for place in range(len(self.program.carries))]
        if self.kept:
            kept = [
                f'carried["states"][{p}]' if p in self.kept else text for p, text in enumerate(states[: self.states])
            ]
            lines += [f"{INDENT}if carried:", *statement("states = ", _listed(kept), 2)]
        handed = self.arguments.handed_in(scope)
        if handed is not None:
            condition, extra, leaves = handed
            explicit = [place for place, carry in enumerate(self.program.carries) if carry.explicit]
            found = dict(zip(explicit, leaves, strict=True))
            given = [found.get(place, text) for place, text in enumerate(states[: self.states])]
            lines += [f"{INDENT}if {condition}:", *extra, *statement("states = ", _listed(given), 2)]
        if self.moved:
            paths = [path_in(self.program.root, path) for path in self.moved]
            moved = [f"{path}.detach().clone()" for path in paths]
            lines += statement("states = ", _listed([f"*states[:{self.states}]", *moved]))
        return lines

    def _unchanging(self, statics: Function) -> list[str]:
        """Returns the lines that compute what no step changes: of it, the step takes what is no invariant already."""
        assert self.program.statics is not None
        lines = statement("unchanging = ", statics.call([*self._read(self.static), "*invariants"]))
        known = self.program.statics.names
        taken = [f"unchanging[{i}]" for i, name in enumerate(known) if name not in self.program.invariants]
        return lines if len(taken) == len(known) else [*lines, *statement("unchanging = ", _listed(taken))]

    def _loop(self, model: list[str], traced_model: list[str]) -> list[str]:
        program = self.program
        static = ["*unchanging"] if self.statics is not None else []
        rest = ["*invariants", "*states", *static]
        drawn = ["*drawn"] if self.draws is not None else []
        if program.kind == "step":
            begun = ["*start(*states)"]
            one, traced = ([*given, "*inputs", *drawn, *rest] for given in (model, traced_model))
            return self._drawn(["*inputs"], 1) + self._one_step(
                one, [*traced, *begun], [], [f"{INDENT * 2}fold(record, accrued)"], 1
            )
        slices = [f"inputs[{i}].select({x.dim}, t)" for i, x in enumerate(program.inputs)]
        length = str(program.length)
        if program.length is None:
            length = f"inputs[0].shape[{program.inputs[0].dim}]"
        one, traced = ([*given, *slices, *drawn, *rest] for given in (model, traced_model))
        lines = []
        if self.records:
            bins = f"Bins.over(length, {program.settings.bins})"
            lines, length = [f"{INDENT}length = {length}", f"{INDENT}bins = {bins}"], "length"
        lines += [f"{INDENT}steps = []", f"{INDENT}for t in range({length}):"]
        # A first state of another shape than the next has a record of its own.
        begins, ends = (" or t == 1", " or t == 0") if program.first_apart else ("", "")
        begin = [f"{INDENT * 3}if t in bins.edges{begins}:", f"{INDENT * 4}accrued = start(*states)"]
        end = [f"{INDENT * 3}if t + 1 in bins.edges{ends}:", f"{INDENT * 4}fold(record, accrued)"]
        lines += self._drawn(slices, 2)
        lines += self._one_step(one, [*traced, "*accrued"], begin, end, 2)
        return [*lines, f"{INDENT * 2}steps.append(outputs)"]

    def _drawn(self, inputs: list[str], depth: int) -> list[str]:
        """Returns the lines that draw what the next step takes."""
        if self.draws is None:
            return []
        given = self.draws.call([*inputs, "*invariants", "*states"])
        return [f"{INDENT * depth}with torch.no_grad():", *statement("drawn = ", given, depth + 1)]

    def _one_step(self, one: list[str], traced: list[str], begin: list[str], end: list[str], depth: int) -> list[str]:
        """Returns a call of the step; of that in trace form, between its begin and its end, where there is a record."""
        results = "outputs, states, *_ = "
        if not self.records:
            return statement(results, call("step", names(one)), depth)
        indent, traced_results = INDENT * depth, "outputs, states, accrued, *_ = "
        return [
            f"{indent}if record is None:",
            *statement(results, call("step", names(one)), depth + 1),
            f"{indent}else:",
            *begin,
            f"{indent}{INDENT}with torch.no_grad():",
            *statement(traced_results, call("traced_step", names(traced)), depth + 2),
            *end,
        ]

    def _end(self) -> list[str]:
        program = self.program
        found, lines = (["*outputs"], []) if program.kind == "step" else collected(program.outputs)
        given = [*self._read(self.after), *found, "*states", "*invariants"]
        lines += statement("leaves = ", self.epilogue.call(given))
        if self.kept:
            detached = f"[value.detach() for value in states[:{self.states}]]"
            lines += [f"{INDENT}if carried is not None:", f'{INDENT * 2}carried["states"] = {detached}']
        count = program.result.num_leaves
        moved = [(path, f"leaves[{count + i}]") for i, path in enumerate(program.statistics) if path]
        moved += [(path, f"states[{self.states + i}]") for i, path in enumerate(self.moved)]
        if moved:
            lines.append(f"{INDENT}with torch.no_grad():")
            lines += [f"{INDENT * 2}{path_in(program.root, path)}.copy_({value})" for path, value in moved]
        return [*lines, *self.result.lines()]


def _listed(items: Sequence[str]) -> Expression:
    return sequence("[", names(items), "]")
