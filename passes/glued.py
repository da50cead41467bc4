"""The layers of a program, glued back into one step."""

from __future__ import annotations

from torch import fx

from tracecompile.analysis.moving import Moving
from tracecompile.graphs.glue import Glue
from tracecompile.passes.compared import difference
from tracecompile.program import StepProgram, step_results

Results = tuple[tuple[fx.Node, ...], tuple[fx.Node, ...]]
"""(outputs, next states) of a step."""


def begun(program: StepProgram) -> Glue:
    """Returns a graph that takes what the step takes, and the static values."""
    assert program.statics is not None
    glue = Glue(program)
    glue.take(node.name for node in program.step.graph.nodes if node.op == "placeholder")
    glue.take(program.statics.names)
    return glue


def results_of(glue: Glue) -> Results:
    """Returns outputs and next states, and adds what the step does to statistics alone, which belongs to no layer."""
    moving = Moving(glue.program)
    values = {node: glue.made[node.name] for node in moving.read}
    for node in moving.nodes:
        values[node] = glue.graph.node_copy(node, values.__getitem__)
        if node.op == "call_module":
            glue.owned[str(node.target)] = glue.program.resolve(str(node.target))
        glue.made[node.name] = values[node]
    outputs, states = (tuple(glue.made[node.name] for node in group) for group in step_results(glue.program.step))
    return outputs, states


def glued(program: StepProgram) -> tuple[Glue, Results]:
    """Returns the step as the model has it, layer by layer: it carries nothing else."""
    glue = begun(program)
    for layer in program.layers:
        glue.synapse(layer, layer.synapse.graph.nodes, count=False)
        glue.core(layer, traced=False)
    return glue, results_of(glue)


def differs_from_step(program: StepProgram, graph: fx.Graph, results: Results) -> str | None:
    """Returns what a graph computes otherwise than the captured step, or None.

    Args:
        program: Whose step it is.
        graph: Takes what the step takes and the static values, by their names.
        results: Its outputs and next states.
    """
    pairs = [
        pair for group in zip(step_results(program.step), results, strict=True) for pair in zip(*group, strict=True)
    ]
    return difference(pairs, stand_ins(program, graph))


def stand_ins(program: StepProgram, graph: fx.Graph) -> dict[fx.Node, fx.Node]:
    """Returns what the arguments of a graph stand for in the step: its arguments, and its static values."""
    arguments = {node.name: node for node in graph.nodes if node.op == "placeholder"}
    static = set(program.statics.names) if program.statics is not None else set()
    return {
        node: arguments[node.name]
        for node in program.step.graph.nodes
        if node.name in arguments and (node.op == "placeholder" or node.name in static)
    }
