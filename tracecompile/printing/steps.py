"""One step as calls of its layers or of its units, in their order: as the model has it, or in trace form."""

from __future__ import annotations

from collections.abc import Iterable, Sequence

from tracecompile.graphs.glue import OF_TRACES, accruals_of
from tracecompile.layers import STATISTICS, Accrual, Layer
from tracecompile.printing.body import Body
from tracecompile.printing.glue import Glue
from tracecompile.printing.layout import INDENT, WIDTH, call, names, sequence, statement
from tracecompile.printing.naming import Scope
from tracecompile.printing.page import Function, signature
from tracecompile.printing.references import MODEL
from tracecompile.program import step_results
from tracecompile.units import Unit

Target = str | Sequence["Target"]
"""Names on the left of an assignment, as deep as what they are assigned from."""


class Written(str):
    """A name that is on the page already."""


class StepText:
    """Puts the parts of a step together again.

    Attributes:
        names: What the values of the step are called, by the names of its nodes; known after ``lines``.
        totals: What is carried beside the states, by the names of the accruals: nothing but in trace form.
        statistics: Of the normalisations met so far.
    """

    def __init__(self, glue: Glue, traced: bool) -> None:
        """Takes the parts, which must have their names."""
        self.glue, self.page, self.program, self.tracing = glue, glue.page, glue.program, traced
        self.names: dict[str, str] = {}
        self.totals: dict[str, str] = {}
        self.statistics: dict[str, list[Written]] = {}
        self.body = Body(self.page, self.program.step, Scope(self.page.scope))

    def lines(self) -> list[str]:
        """Returns the lines of the function."""
        program = self.program
        placeholders = [node.name for node in program.step.graph.nodes if node.op == "placeholder"]
        statics = [] if program.statics is None else [n for n in program.statics.names if n not in placeholders]
        taken = [self._new(name) for name in (*placeholders, *statics)]
        if self.tracing:
            carried = self.glue.carried.names.items()
            self.totals = {name: self.body.scope.take(wanted) for name, wanted in carried}
        for unit, below, step in self.glue.of_units:
            self._unit(unit, below, step)
        for layer in () if self.glue.of_units else program.layers:
            self._layer(layer)
        self._move()
        self.names.update((node.name, value.text) for node, value in self.body.values.items())
        groups = [[self.names[node.name] for node in group] for group in step_results(program.step)]
        if self.tracing:
            self._traces()
            groups.append(list(self.totals.values()))
        first = signature(
            "traced_step" if self.tracing else "step",
            [*([MODEL] if self.glue.takes_model(self.tracing) else []), *taken, *self.totals.values()],
        )
        results = sequence("(", [sequence("(", names(group), ")") for group in groups], ")")
        return [*first, *self.body.lines, *statement("return ", results)]

    def _traces(self) -> None:
        lines = []
        for accrual in self.program.traces_kept:
            value, statistic = accrual.pair
            total = self.totals[accrual.name]
            read = self.statistics[value][STATISTICS.index(statistic)] if statistic else self.names[value]
            moved = call("accumulated", names([total, read]))
            if accrual.decay is not None:
                moved = call("decayed", names([total, read, repr(accrual.decay)]))
            lines += statement(f"{total} = ", moved)
        self.body.lines += [f"{INDENT}# {OF_TRACES}", *lines] if lines else []

    def _layer(self, layer: Layer) -> None:
        self.body.lines.append(f"{INDENT}# layer {layer.name}")
        given = [*(source.value for source in layer.sources), *layer.synapse_statics]
        if layer.currents and self.tracing and layer.norms:
            self._assign([layer.currents, self._norms(layer.norms)], self.glue.synapses[layer.name], given)
        elif layer.currents:
            self._assign(layer.currents, self.glue.synapses[layer.name], given)
        if layer.core is None:
            return
        results: Sequence[Target] = [layer.outputs, [self.glue.following[state].name for state in layer.states]]
        given = [*layer.currents, *layer.states, *layer.core_statics]
        accruals = accruals_of(layer) if self.tracing else ()
        if accruals:
            results = [results, self._moved(accruals), Written("*_")]
        self._assign(results, self.glue.cores[layer.name], given, accruals)

    def _unit(self, unit: Unit, below: Function, step: Function | None) -> None:
        layers = ", ".join(self.program.layers[index].name for index in unit.layers)
        self.body.lines.append(f"{INDENT}# unit of {layers}")
        counts = self.tracing and bool(unit.below_norms)
        norms = unit.below_norms if counts else ()
        inputs = [Written(self.body.scope.take(f"{self.glue.carried.called(norm)}_input")) for norm in norms]
        self._assign([unit.made, inputs if counts else "_"], below, [*unit.sources, *unit.below_statics])
        for norm, value in zip(norms, inputs, strict=True):
            (pair,) = self._norms([norm])
            self.body.lines += statement(f"{', '.join(pair)} = ", call("batch_statistics", names([value])))
        if step is None:
            return
        given = [*unit.values, *(c for c in unit.carries if c not in unit.values), *unit.step_statics]
        following = [self.glue.following[carry].name for carry in unit.carries]
        counted: Target = self._norms(unit.step_norms) if self.tracing and unit.step_norms else "_"
        accruals = unit.accruals if self.tracing else ()
        moved = self._moved(accruals) if accruals else "_"
        self._assign([unit.outputs, following, moved, counted, "_"], step, given, accruals)

    def _move(self) -> None:
        """Moves the statistics that no layer needs."""
        if not self.glue.of_units:
            self.body.write(self.glue.moving)
        elif self.glue.moves is not None:
            moves, function = self.glue.moves
            following = [self.glue.following[statistic].name for statistic in moves.statistics]
            self._assign([following], function, [*moves.reads, *moves.statistics, *moves.statics])

    def _norms(self, norms: Sequence[str]) -> list[list[Written]]:
        """Returns names for the batch statistics of normalisations, a pair for each."""
        for norm in norms:
            called = self.glue.carried.called(norm)
            self.statistics[norm] = [Written(self.body.scope.take(f"{called}_{what}")) for what in STATISTICS]
        return [self.statistics[norm] for norm in norms]

    def _moved(self, accruals: Sequence[Accrual]) -> list[Written]:
        return [Written(self.totals[accrual.name]) for accrual in accruals]

    def _assign(
        self, results: Sequence[Target], function: Function, given: Iterable[str], accruals: Sequence[Accrual] = ()
    ) -> None:
        totals = self._moved(accruals)
        called = self.glue.form(function, self.tracing).call([*(self.names[name] for name in given), *totals])
        left = self._left(results)
        begins = f"{INDENT}{left[1:-1] if len(results) > 1 else left} = {called.bracket.opening}"
        if totals and len(begins) > WIDTH:
            apart = self.body.scope.take("moved")
            left = left.replace(self._left(totals), apart)
            self.body.lines += statement(f"{left[1:-1]} = ", called)
            self.body.lines += _unpacked(totals, apart)
        else:
            self.body.lines += statement(f"{left[1:-1] if len(results) > 1 else left} = ", called)

    def _left(self, target: Target) -> str:
        """Returns the left side of an assignment; what has a name already is not given another."""
        if isinstance(target, Written):
            return target
        if not isinstance(target, str):
            return sequence("(", names([self._left(part) for part in target]), ")").text
        return "_" if target == "_" or target in self.names else self._new(target)

    def _new(self, name: str) -> str:
        self.names[name] = self.body.name(self.glue.nodes[name])
        return self.names[name]


def _unpacked(targets: Sequence[str], value: str) -> list[str]:
    line = f"{INDENT}{', '.join(targets)}{',' * (len(targets) == 1)} = {value}"
    if len(line) <= WIDTH:
        return [line]
    return [f"{INDENT}(", *(f"{INDENT * 2}{target}," for target in targets), f"{INDENT}) = {value}"]
