"""The functions that a step is made of: those of its layers, or of its units."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any

from torch import fx

from tracecompile.analysis.moving import Moving
from tracecompile.capture.tracing.names import valid_name
from tracecompile.graphs import glue as graphs
from tracecompile.graphs.pruning import pruned
from tracecompile.layers import Accrual, Layer
from tracecompile.printing.carried import ACCUMULATION, Carried
from tracecompile.printing.page import Function, Page
from tracecompile.program import StepProgram, step_results
from tracecompile.rules.norm import batch_statistics
from tracecompile.units import Moves, Unit


class Glue:
    """Adds the functions that a step is made of to a page.

    Attributes:
        carried: What it carries beside the states.
        synapses, cores: By layer.
        traced: Those in trace form, of synapses with batch normalisations and of cores, by the plain ones.
        of_units: The functions of each unit; ``moves`` moves the statistics that no layer needs, if one does.
        following: The next value of each state.
        moving, moves_model: What the step does to statistics alone, and whether that reads the model.
    """

    def __init__(self, page: Page, program: StepProgram) -> None:
        self.page, self.program = page, program
        self.carried = Carried(page, program)
        self.synapses: dict[str, Function] = {}
        self.cores: dict[str, Function] = {}
        self.traced: dict[fx.GraphModule, Function] = {}
        self.of_units: list[tuple[Unit, Function, Function | None]] = []
        self.moves: tuple[Moves, Function] | None = None
        self.nodes = {node.name: node for node in program.step.graph.nodes}
        results = step_results(program.step)[1]
        self.following = dict(zip((carry.placeholder for carry in program.carries), results, strict=True))
        self.moving = Moving(program).nodes if program.layers else []
        self.moves_model = page.survey(program.step, self.moving)

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
            notes = (f"# Unit of {', '.join(layer.name for layer in layers)}{recurrent}.", *_said_of(unit))
            below = self.page.add(unit.below, f"{name}_below", None, notes)
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
            if unit.moves is not None:
                self.moves = unit.moves, self.page.add(unit.moves.graph, "moved_statistics")
                found.append(self.moves[1])
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

    def takes_model(self, traced: bool = False) -> bool:
        """Whether any part of the step, or of the step in trace form, reads the model."""
        called = [*self.synapses.values(), *self.cores.values()]
        for _, below, step in self.of_units:
            called += [below] if step is None else [below, step]
        if self.moves is not None:
            called.append(self.moves[1])
        called = [self.form(function, traced) for function in called]
        return (self.moves_model and not self.of_units) or any(function.takes_model for function in called)

    def form(self, function: Function, traced: bool) -> Function:
        """Returns a function, or that in trace form where there is one."""
        return self.traced.get(function.module, function) if traced else function


def results_of(module: fx.GraphModule) -> Any:
    """Returns what a graph returns, as nodes."""
    return next(node for node in reversed(module.graph.nodes) if node.op == "output").args[0]


def _by_name(accruals: Sequence[Accrual], moved: Sequence[fx.Node]) -> dict[str, fx.Node]:
    return {accrual.name: node for accrual, node in zip(accruals, moved, strict=True)}


def _said_of(unit: Unit) -> tuple[str, ...]:
    """Returns the comment that says why the steps of a unit are taken one at a time."""
    if not unit.alone:
        return ()
    what = "Takes one step at a time" if unit.in_turn else "What it reads is computed one step at a time"
    return (f"# {what}: {unit.alone}.",)
