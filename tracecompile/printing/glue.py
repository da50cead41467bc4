"""The step as calls of its layers or of its units, in their order."""

from __future__ import annotations

from collections.abc import Iterable, Sequence
from typing import Any

from torch import fx

from tracecompile.analysis.moving import Moving
from tracecompile.capture.tracing.names import valid_name
from tracecompile.graphs import glue as graphs
from tracecompile.graphs.pruning import pruned
from tracecompile.layers import STATISTICS, Accrual, Layer, Unit
from tracecompile.printing.body import Body
from tracecompile.printing.carried import ACCUMULATION, Carried
from tracecompile.printing.layout import INDENT, WIDTH, call, names, sequence, statement
from tracecompile.printing.naming import Scope
from tracecompile.printing.page import Function, Page, signature
from tracecompile.printing.references import MODEL
from tracecompile.program import StepProgram, step_results
from tracecompile.rules.norm import batch_statistics

Target = str | Sequence["Target"]
"""Names on the left of an assignment, as deep as what they are assigned from."""


class Written(str):
    """A name that is on the page already."""


class Glue:
    """Prints the parts of a step and puts them together again.

    Attributes:
        names: What the values of the step are called, by the names of its nodes; known after ``step``.
    """

    def __init__(self, page: Page, program: StepProgram) -> None:
        self.page, self.program = page, program
        self.names: dict[str, str] = {}
        self.carried = Carried(page, program)
        self.synapses: dict[str, Function] = {}
        self.cores: dict[str, Function] = {}
        self.traced: dict[fx.GraphModule, Function] = {}
        """Those in trace form, of synapses with batch normalisations and of cores, by the plain ones."""
        self.of_units: list[tuple[Unit, Function, Function | None]] = []
        self.nodes = {node.name: node for node in program.step.graph.nodes}
        results = step_results(program.step)[1]
        self.following = dict(zip((carry.placeholder for carry in program.carries), results, strict=True))
        self.moving = Moving(program).nodes if program.layers else []
        self.moves_model = page.survey(program.step, self.moving)

    # Planning.

    def synapse(self, layer: Layer, notes: tuple[str, ...]) -> Function:
        """Adds the synapse of a layer."""
        self.synapses[layer.name] = self.page.add(layer.synapse, f"{valid_name(layer.name)}_synapse", None, notes)
        return self.synapses[layer.name]

    def traced_synapse(self, layer: Layer) -> list[Function]:
        """Adds the synapse of a layer with the batch statistics of its normalisations, where it has any."""
        if not layer.norms:
            return []
        graph = graphs.Glue(self.program)
        graph.take(node.name for node in layer.synapse.graph.nodes if node.op == "placeholder")
        graph.synapse(layer, layer.synapse.graph.nodes, count=True)
        currents = tuple(graph.made[name] for name in layer.currents)
        module = graph.module((currents, tuple(graph.norms.values())), "Synapse")
        return [self._in_trace_form(self.synapses[layer.name], module, {})]

    def _in_trace_form(self, plain: Function, module: fx.GraphModule, wanted: dict[fx.Node, str]) -> Function:
        self.traced[plain.module] = self.page.add(module, f"{plain.name}_in_trace_form", wanted)
        return self.traced[plain.module]

    def core(self, layer: Layer) -> list[Function]:
        """Adds the core of a layer, and its trace form where the rule has one."""
        assert layer.core is not None
        name = valid_name(layer.name)
        self.cores[layer.name] = self.page.add(layer.core, f"{name}_core")
        graph = None if layer.response is None else layer.response.graph
        if graph is None:
            return [self.cores[layer.name]]
        _, moved, _, derivatives = results_of(graph)
        wanted = self.carried.wanted(graph, _by_name(graphs.accruals_of(layer), moved), [layer], [derivatives])
        return [self.cores[layer.name], self._in_trace_form(self.cores[layer.name], graph, wanted)]

    def units(self) -> list[Function]:
        """Adds the functions of all units."""
        found = []
        for number, unit in enumerate(self.program.units):
            layers = [self.program.layers[index] for index in unit.layers]
            name = valid_name(layers[0].name) if len(layers) == 1 else f"block_{number}"
            recurrent = ", recurrent" if unit.recurrent else ""
            note = f"# Unit of {', '.join(layer.name for layer in layers)}{recurrent}."
            below = self.page.add(unit.below, f"{name}_below", None, (note,))
            found.append(below)
            step = None
            if unit.step is not None:
                plain, _ = pruned(unit.step, unit.accruals, {accrual.name for accrual in unit.accruals})
                step = self.page.add(plain, f"{name}_stepped", self.in_trace_form(layers, plain, ()))
                found.append(step)
                if unit.accruals:
                    wanted = self.in_trace_form(layers, unit.step, unit.accruals)
                    found.append(self._in_trace_form(step, unit.step, wanted))
            self.of_units.append((unit, below, step))
        return found

    def in_trace_form(
        self, layers: Sequence[Layer], step: fx.GraphModule, accruals: Sequence[Accrual]
    ) -> dict[fx.Node, str]:
        """Names what a step in trace form, of a unit or of the program, makes for these layers."""
        _, _, moved, _, of_layers = results_of(step)
        return self.carried.wanted(step, _by_name(accruals, moved), layers, [rows for _, _, rows in of_layers])

    def carries(self) -> bool:
        """Notes what the lines of the traces call; tells whether the program carries anything beside its states."""
        for accrual in self.program.traces_kept:
            self.page.imports.take(ACCUMULATION, "accumulated" if accrual.decay is None else "decayed")
            if accrual.pair[1] and self.of_units:
                self.page.imports.take(batch_statistics.__module__, batch_statistics.__name__)
        return bool(self.carried.accruals)

    # Writing.

    def takes_model(self, traced: bool = False) -> bool:
        """Whether any part of the step, or of the step in trace form, reads the model."""
        called = [*self.synapses.values(), *self.cores.values()]
        for _, below, step in self.of_units:
            called += [below] if step is None else [below, step]
        called = [self._form(function, traced) for function in called]
        return self.moves_model or any(function.takes_model for function in called)

    def _form(self, function: Function, traced: bool) -> Function:
        return self.traced.get(function.module, function) if traced else function

    def step(self, traced: bool = False) -> list[str]:
        """Returns the lines of the step, in trace form or as the model has it."""
        program = self.program
        self.names, self.tracing = {}, traced
        self.totals: dict[str, str] = {}
        self.statistics: dict[str, list[Written]] = {}
        self.body = Body(self.page, program.step, Scope(self.page.scope))
        placeholders = [node.name for node in program.step.graph.nodes if node.op == "placeholder"]
        statics = [] if program.statics is None else [n for n in program.statics.names if n not in placeholders]
        taken = [self._new(name) for name in (*placeholders, *statics)]
        if traced:
            carried = self.carried.names.items()
            self.totals = {name: self.body.scope.take(wanted) for name, wanted in carried}
        for unit, below, step in self.of_units:
            self._unit(unit, below, step)
        for layer in () if self.of_units else program.layers:
            self._layer(layer)
        self.body.write(self.moving)
        self.names.update((node.name, value.text) for node, value in self.body.values.items())
        groups = [[self.names[node.name] for node in group] for group in step_results(program.step)]
        if traced:
            self._traces()
            groups.append(list(self.totals.values()))
        first = signature(
            "traced_step" if traced else "step",
            [*([MODEL] if self.takes_model(traced) else []), *taken, *self.totals.values()],
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
        self.body.lines += [f"{INDENT}# {graphs.OF_TRACES}", *lines] if lines else []

    def _layer(self, layer: Layer) -> None:
        self.body.lines.append(f"{INDENT}# layer {layer.name}")
        given = [*(source.value for source in layer.sources), *layer.synapse_statics]
        if layer.currents and self.tracing and layer.norms:
            self._assign([layer.currents, self._norms(layer.norms)], self.synapses[layer.name], given)
        elif layer.currents:
            self._assign(layer.currents, self.synapses[layer.name], given)
        if layer.core is None:
            return
        results = [layer.outputs, [self.following[state].name for state in layer.states]]
        given = [*layer.currents, *layer.states, *layer.core_statics]
        accruals = graphs.accruals_of(layer) if self.tracing else ()
        if accruals:
            results = [results, self._moved(accruals), Written("*_")]
        self._assign(results, self.cores[layer.name], given, accruals)

    def _unit(self, unit: Unit, below: Function, step: Function | None) -> None:
        layers = ", ".join(self.program.layers[index].name for index in unit.layers)
        self.body.lines.append(f"{INDENT}# unit of {layers}")
        counts = self.tracing and bool(unit.below_norms)
        norms = unit.below_norms if counts else ()
        inputs = [Written(self.body.scope.take(f"{self.carried.called(norm)}_input")) for norm in norms]
        self._assign([unit.values, inputs if counts else "_"], below, [*unit.sources, *unit.below_statics])
        for norm, value in zip(norms, inputs, strict=True):
            (pair,) = self._norms([norm])
            self.body.lines += statement(f"{', '.join(pair)} = ", call("batch_statistics", names([value])))
        if step is None:
            return
        given = [*unit.values, *(c for c in unit.carries if c not in unit.values), *unit.step_statics]
        following = [self.following[carry].name for carry in unit.carries]
        counted: Target = self._norms(unit.step_norms) if self.tracing and unit.step_norms else "_"
        accruals = unit.accruals if self.tracing else ()
        moved = self._moved(accruals) if accruals else "_"
        self._assign([unit.outputs, following, moved, counted, "_"], step, given, accruals)

    def _norms(self, norms: Sequence[str]) -> list[list[Written]]:
        """Returns names for the batch statistics of normalisations, a pair for each."""
        for norm in norms:
            called = self.carried.called(norm)
            self.statistics[norm] = [Written(self.body.scope.take(f"{called}_{what}")) for what in STATISTICS]
        return [self.statistics[norm] for norm in norms]

    def _moved(self, accruals: Sequence[Accrual]) -> list[Written]:
        return [Written(self.totals[accrual.name]) for accrual in accruals]

    def _assign(
        self, results: Sequence[Target], function: Function, given: Iterable[str], accruals: Sequence[Accrual] = ()
    ) -> None:
        totals = self._moved(accruals)
        called = self._form(function, self.tracing).call([*(self.names[name] for name in given), *totals])
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
        self.names[name] = self.body.name(self.nodes[name])
        return self.names[name]


def results_of(module: fx.GraphModule) -> Any:
    """Returns what a graph returns, as nodes."""
    return next(node for node in reversed(module.graph.nodes) if node.op == "output").args[0]


def _unpacked(targets: Sequence[str], value: str) -> list[str]:
    line = f"{INDENT}{', '.join(targets)}{',' * (len(targets) == 1)} = {value}"
    if len(line) <= WIDTH:
        return [line]
    return [f"{INDENT}(", *(f"{INDENT * 2}{target}," for target in targets), f"{INDENT}) = {value}"]


def _by_name(accruals: Sequence[Accrual], moved: Sequence[fx.Node]) -> dict[str, fx.Node]:
    return {accrual.name: node for accrual, node in zip(accruals, moved, strict=True)}
