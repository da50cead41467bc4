"""Generates the code of one traced time step."""

from __future__ import annotations

import operator
from typing import ClassVar

from torch import fx

from tracecompile.analysis.ports import find_ports
from tracecompile.analysis.prologue import without_side_effects
from tracecompile.emitted import Emitted
from tracecompile.graphs.glue import OF_TRACES, Glue
from tracecompile.graphs.whole_steps import joined
from tracecompile.layers import STATISTICS, Accrual
from tracecompile.passes.base import Pass
from tracecompile.passes.emitted import accruals_carried, fault_around_the_step, fault_of_plain, fault_of_traced
from tracecompile.passes.glued import begun, glued, results_of
from tracecompile.program import StepProgram
from tracecompile.rules.accumulation import accumulated, decayed


class EmitModule(Pass):
    """Glues the local graphs back into one step, with and without what the rule records.

    requires: a schedule.
    ensures: the emitted step takes and returns what the captured step does, in trace form also exactly what the layers
        and the traces carry, moved on; every trace adds up what it is of. No attribute of the model is read but those
        that are handed in.

        before: layers with synapse, core and response
        after:  def forward(x_t, mem, beta): cur = fc(x_t); ...;
                return (spk,), (mem_2,), (trace_x + x_t, e_mem, ..., r_spk + answer), (x_t,), ((spk,), answers, slopes)
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
        traced, accruals = _traced(program)
        return program.evolve(
            ports=find_ports(program),
            emitted=Emitted(
                plain=_plain(program),
                traced=traced,
                accruals=accruals,
                prologue=prologue,
                arguments=arguments,
                epilogue=epilogue,
                prologue_attributes=before,
                epilogue_attributes=after,
            ),
        )

    def ensures(self, before: StepProgram, after: StepProgram) -> str | None:
        """See the class."""
        if (emitted := after.emitted) is None:
            return "nothing is emitted"
        promises = (fault_of_plain, fault_of_traced, fault_around_the_step)
        return next((fault for promise in promises if (fault := promise(after, emitted)) is not None), None)


def _plain(program: StepProgram) -> fx.GraphModule:
    glue, results = glued(program)
    return joined(glue.module((*results, (), (), ()), "Step"))


def _traced(program: StepProgram) -> tuple[fx.GraphModule, tuple[Accrual, ...]]:
    """Returns the step in trace form, and what it carries beside the states."""
    accruals = accruals_carried(program)
    glue = begun(program)
    glue.take(accrual.name for accrual in accruals)
    lines = []
    for layer in program.layers:
        glue.synapse(layer, layer.synapse.graph.nodes, count=True)
        lines.append(glue.core(layer, traced=True))
    read = tuple(_read(glue, accrual) for accrual in program.traces_kept)
    traces = [_traced_on(glue, *each) for each in zip(program.traces_kept, read, strict=True)]
    moved = (*traces, *(value for each in lines for value in each.accruals))
    of_layers = tuple((each.outputs, each.answers, each.derivatives) for each in lines)
    return glue.module((*results_of(glue), moved, read, of_layers), "TracedStep"), accruals


def _read(glue: Glue, accrual: Accrual) -> fx.Node:
    """Returns what a trace adds up in a step: a source, or the mean or the variance of a normalisation's input."""
    value, statistic = accrual.pair
    if not statistic:
        return glue.made[value]
    return glue.added(OF_TRACES, operator.getitem, glue.norms[value], STATISTICS.index(statistic))


def _traced_on(glue: Glue, accrual: Accrual, value: fx.Node) -> fx.Node:
    total = glue.made[accrual.name]
    if accrual.decay is None:
        return glue.added(OF_TRACES, accumulated, total, value)
    return glue.added(OF_TRACES, decayed, total, value, accrual.decay)


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
