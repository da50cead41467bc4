"""The step as calls of its layers or of its units, in their order."""

from __future__ import annotations

from collections.abc import Iterable, Sequence
from typing import Any

from torch import fx

from tracecompile.analysis.moving import Moving
from tracecompile.capture.tracing.names import valid_name
from tracecompile.graphs.pruning import pruned
from tracecompile.layers import Layer, Unit
from tracecompile.printing.body import Body
from tracecompile.printing.layout import INDENT, names, sequence, statement
from tracecompile.printing.naming import Scope, wanted_name
from tracecompile.printing.page import Function, Page, signature
from tracecompile.printing.references import MODEL
from tracecompile.program import StepProgram, step_results

Target = str | Sequence["Target"]
"""Names on the left of an assignment, as deep as what they are assigned from."""


class Glue:
    """Prints the parts of a step and puts them together again.

    Attributes:
        names: What the values of the step are called, by the names of its nodes; known after ``step``.
    """

    def __init__(self, page: Page, program: StepProgram) -> None:
        self.page, self.program = page, program
        self.names: dict[str, str] = {}
        self.synapses: dict[str, Function] = {}
        self.cores: dict[str, Function] = {}
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

    def core(self, layer: Layer) -> list[Function]:
        """Adds the core of a layer, and its trace form where the rule has one."""
        assert layer.core is not None
        name = valid_name(layer.name)
        self.cores[layer.name] = self.page.add(layer.core, f"{name}_core")
        graph = None if layer.response is None else layer.response.graph
        if graph is None:
            return [self.cores[layer.name]]
        wanted = self.derivatives([layer], [results_of(graph)[3]])
        return [self.cores[layer.name], self.page.add(graph, f"{name}_core_in_trace_form", wanted)]

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
                step = self.page.add(plain, f"{name}_stepped", self._of_unit(layers, plain))
                found.append(step)
                if unit.accruals:
                    wanted = self._of_unit(layers, unit.step)
                    found.append(self.page.add(unit.step, f"{name}_stepped_in_trace_form", wanted))
            self.of_units.append((unit, below, step))
        return found

    def _of_unit(self, layers: Sequence[Layer], step: fx.GraphModule) -> dict[fx.Node, str]:
        return self.derivatives(layers, [rows for _, _, rows in results_of(step)[4]])

    def derivatives(self, layers: Sequence[Layer], groups: Iterable[Any]) -> dict[fx.Node, str]:
        """Names the derivatives that a graph returns, of what by what: a group of them for each layer."""
        found: dict[fx.Node, str] = {}
        for layer, group in zip(layers, groups, strict=True):
            for (of, by), row in layer.response.rows.items() if layer.response is not None else ():
                # A row that is a number is the same for every neuron and step, and no part of the graph.
                if isinstance(row, int) and group[row].op != "placeholder":
                    found.setdefault(group[row], f"d_{self._result(layer, of)}_d_{self._called(by)}")
        return found

    def _result(self, layer: Layer, name: str) -> str:
        following = name.removeprefix("next:")
        return self._called(name if following == name else layer.states[int(following)])

    def _called(self, name: str) -> str:
        return wanted_name(self.nodes[name])

    # Writing.

    @property
    def takes_model(self) -> bool:
        """Whether any part of the step reads the model."""
        called = [*self.synapses.values(), *self.cores.values()]
        for _, below, step in self.of_units:
            called += [below] if step is None else [below, step]
        return self.moves_model or any(function.takes_model for function in called)

    def step(self) -> list[str]:
        """Returns the lines of the step."""
        program = self.program
        self.body = Body(self.page, program.step, Scope(self.page.scope))
        placeholders = [node.name for node in program.step.graph.nodes if node.op == "placeholder"]
        statics = [] if program.statics is None else [n for n in program.statics.names if n not in placeholders]
        taken = [self._new(name) for name in (*placeholders, *statics)]
        for unit, below, step in self.of_units:
            self._unit(unit, below, step)
        for layer in () if self.of_units else program.layers:
            self._layer(layer)
        self.body.write(self.moving)
        self.names.update((node.name, value.text) for node, value in self.body.values.items())
        groups = [
            sequence("(", names(self.names[node.name] for node in group), ")") for group in step_results(program.step)
        ]
        first = signature("step", [*([MODEL] if self.takes_model else []), *taken])
        return [*first, *self.body.lines, *statement("return ", sequence("(", groups, ")"))]

    def _layer(self, layer: Layer) -> None:
        self.body.lines.append(f"{INDENT}# layer {layer.name}")
        given = [*(source.value for source in layer.sources), *layer.synapse_statics]
        if layer.currents:
            self._assign(layer.currents, self.synapses[layer.name], given)
        if layer.core is None:
            return
        results = [layer.outputs, [self.following[state].name for state in layer.states]]
        given = [*layer.currents, *layer.states, *layer.core_statics]
        self._assign(results, self.cores[layer.name], given)

    def _unit(self, unit: Unit, below: Function, step: Function | None) -> None:
        layers = ", ".join(self.program.layers[index].name for index in unit.layers)
        self.body.lines.append(f"{INDENT}# unit of {layers}")
        self._assign([unit.values, "_"], below, [*unit.sources, *unit.below_statics])
        if step is not None:
            given = [*unit.values, *(c for c in unit.carries if c not in unit.values), *unit.step_statics]
            following = [self.following[carry].name for carry in unit.carries]
            self._assign([unit.outputs, following, "_", "_", "_"], step, given)

    def _assign(self, results: Sequence[Target], function: Function, given: Iterable[str]) -> None:
        call = function.call([self.names[name] for name in given])
        left = self._left(results)
        self.body.lines += statement(f"{left[1:-1] if len(results) > 1 else left} = ", call)

    def _left(self, target: Target) -> str:
        """Returns the left side of an assignment; what has a name already is not given another."""
        if not isinstance(target, str):
            return sequence("(", names([self._left(part) for part in target]), ")").text
        return "_" if target == "_" or target in self.names else self._new(target)

    def _new(self, name: str) -> str:
        self.names[name] = self.body.name(self.nodes[name])
        return self.names[name]


def results_of(module: fx.GraphModule) -> Any:
    """Returns what a graph returns, as nodes."""
    return next(node for node in reversed(module.graph.nodes) if node.op == "output").args[0]
