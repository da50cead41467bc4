"""Generates the code of one traced time step."""

from __future__ import annotations

from typing import ClassVar

from torch import fx

from tracecompile.analysis.moving import Moving
from tracecompile.analysis.prologue import without_side_effects
from tracecompile.layers import Emitted, Jacobian, Layer
from tracecompile.passes.base import Pass
from tracecompile.program import StepProgram, step_results
from tracecompile.rules.norm import batch_statistics


class EmitModule(Pass):
    """Glues the local graphs back into one step, with and without what the rule records.

    requires: a schedule.
    ensures: the plain step takes and returns what the captured step does.

        before: layers with synapse, core and response
        after:  def forward(x_t, mem, beta): cur = fc(x_t); ...;
                return ((spk,), (mem_2,)), (x_t,), (((spk,), (d_spk_d_cur, ...)),), ()
    """

    name: ClassVar[str] = "emit_module"

    def requires(self, program: StepProgram) -> str | None:
        """See the class."""
        return None if program.blocks and program.statics is not None else "nothing is scheduled"

    def run(self, program: StepProgram) -> StepProgram:
        """See the class."""
        prologue, before = _lift_attributes(program, without_side_effects(program), "Prologue")
        arguments = _without_initial_states(program, prologue)
        epilogue, after = _lift_attributes(program, program.epilogue, "Epilogue")
        return program.evolve(
            emitted=Emitted(
                plain=_Glue(program, traced=False).module(),
                traced=_Glue(program, traced=True).module(),
                prologue=prologue,
                arguments=arguments,
                epilogue=epilogue,
                prologue_attributes=before,
                epilogue_attributes=after,
            )
        )

    def ensures(self, before: StepProgram, after: StepProgram) -> str | None:
        """See the class."""
        assert after.emitted is not None
        taken = [node.name for node in after.emitted.plain.graph.nodes if node.op == "placeholder"]
        wanted = [node.name for node in after.step.graph.nodes if node.op == "placeholder"]
        return (
            None if taken[: len(wanted)] == wanted else "the emitted step takes other arguments than the captured one"
        )


class _Glue:
    def __init__(self, program: StepProgram, traced: bool) -> None:
        self.program, self.traced = program, traced
        self.graph = fx.Graph()
        self.values: dict[str, fx.Node] = {}
        self.owned: dict[str, object] = {}
        self.norms: list[fx.Node] = []
        self.of_layers: list[tuple[tuple[fx.Node, ...], tuple[fx.Node, ...]]] = []

    def module(self) -> fx.GraphModule:
        program = self.program
        assert program.statics is not None
        for node in program.step.graph.nodes:
            if node.op == "placeholder":
                self.values[node.name] = self.graph.placeholder(node.name)
        for name in program.statics.names:
            if name not in self.values:
                self.values[name] = self.graph.placeholder(name)
        for layer in program.layers:
            self._layer(layer)
        self._move_statistics()
        outputs, states = step_results(program.step)
        results = tuple(tuple(self.values[node.name] for node in group) for group in (outputs, states))
        if self.traced:
            traces = tuple(self.values[trace.value] for trace in program.traces)
            self.graph.output((results, traces, tuple(self.of_layers), tuple(self.norms)))
        else:
            self.graph.output(results)
        return fx.GraphModule(self.owned, self.graph, "TracedStep" if self.traced else "Step")

    def _layer(self, layer: Layer) -> None:
        sources = [self.values[s.value] for s in layer.sources] + [self.values[name] for name in layer.synapse_statics]
        currents = self._inline(layer.synapse, sources, layer.norms)
        self.values.update(zip(layer.currents, currents, strict=True))
        outputs: tuple[fx.Node, ...] = ()
        derivatives: tuple[fx.Node, ...] = ()
        if layer.core is not None:
            names = (*layer.currents, *layer.states, *layer.core_statics)
            arguments = [self.values[name] for name in names]
            if self.traced and isinstance(layer.response, Jacobian):
                (outputs, states), derivatives = self._inline(layer.response.graph, arguments)
            else:
                outputs, states = self._inline(layer.core, arguments)
            self.values.update(zip(layer.outputs, outputs, strict=True))
            self._name_states(layer, states)
        self.of_layers.append((outputs, derivatives))

    def _move_statistics(self) -> None:
        """Adds what the step does to statistics alone, which belongs to no layer."""
        values: dict[fx.Node, fx.Node] = {}
        moving = Moving(self.program)
        values.update((node, self.values[node.name]) for node in moving.read)
        for node in moving.nodes:
            values[node] = self.graph.node_copy(node, values.__getitem__)
            if node.op == "call_module":
                self.owned[str(node.target)] = self.program.resolve(str(node.target))
            self.values[node.name] = values[node]

    def _name_states(self, layer: Layer, states: tuple[fx.Node, ...]) -> None:
        made = dict(zip((c.placeholder for c in self.program.carries), step_results(self.program.step)[1], strict=True))
        for placeholder, value in zip(layer.states, states, strict=True):
            self.values.setdefault(made[placeholder].name, value)

    def _inline(self, module: fx.GraphModule, arguments: list[fx.Node], norms: tuple[str, ...] = ()) -> tuple:  # type: ignore[type-arg]
        remaining = iter(arguments)
        copies: dict[fx.Node, fx.Node] = {}
        for node in module.graph.nodes:
            if node.op == "placeholder":
                copies[node] = next(remaining)
            elif node.op == "output":
                return fx.node.map_arg(node.args[0], copies.__getitem__)
            else:
                copy = self.graph.node_copy(node, copies.__getitem__)
                if node.op in ("call_module", "get_attr"):
                    self.owned[str(node.target)] = module.get_submodule(str(node.target))
                copies[node] = copy
                if self.traced and node.name in norms:
                    self.norms.append(self.graph.call_function(batch_statistics, (copy.all_input_nodes[0],)))
        raise AssertionError("a graph without an output node")


def _without_initial_states(program: StepProgram, prologue: fx.GraphModule) -> fx.GraphModule:
    """Returns the part of a prologue that only looks at the arguments."""
    graph = fx.Graph()
    values: dict[fx.Node, fx.Node] = {}
    for node in prologue.graph.nodes:
        if node.op == "output":
            inputs, invariants, _ = node.args[0]
            graph.output(fx.node.map_arg((inputs, invariants), values.__getitem__))
        else:
            values[node] = graph.node_copy(node, values.__getitem__)
    module = program.graph_module(graph, "Arguments")
    module.graph.eliminate_dead_code()
    module.recompile()
    return module


def _lift_attributes(program: StepProgram, module: fx.GraphModule, name: str) -> tuple[fx.GraphModule, tuple[str, ...]]:
    """Turns ``get_attr`` nodes into first arguments, so that a moved or replaced parameter is never stale."""
    paths = tuple(dict.fromkeys(str(node.target) for node in module.graph.nodes if node.op == "get_attr"))
    graph = fx.Graph()
    made = {path: graph.placeholder(f"attribute_{index}") for index, path in enumerate(paths)}
    values: dict[fx.Node, fx.Node] = {}
    for node in module.graph.nodes:
        values[node] = made[str(node.target)] if node.op == "get_attr" else graph.node_copy(node, values.__getitem__)
    return program.graph_module(graph, name), paths
