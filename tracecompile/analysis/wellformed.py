"""The well-formedness check that runs after every pass."""

from __future__ import annotations

from torch import fx

from tracecompile.program import StepProgram, step_results


def check_well_formed(program: StepProgram) -> str | None:
    """Returns the first thing that is wrong with a program, or None."""
    for name in ("prologue", "step", "epilogue"):
        module: fx.GraphModule = getattr(program, name)
        try:
            module.graph.lint()
        except (RuntimeError, ValueError, AssertionError) as fault:
            return f"{name}: {fault}"
    return _check_step(program) or _check_layers(program)


def _check_step(program: StepProgram) -> str | None:
    placeholders = [node.name for node in program.step.graph.nodes if node.op == "placeholder"]
    expected = [
        *(x.name for x in program.inputs),
        *program.draws.names,
        *program.invariants,
        *(carry.placeholder for carry in program.carries),
    ]
    if placeholders != expected:
        return f"the step takes {placeholders}, the program says {expected}"
    outputs, states = step_results(program.step)
    if len(outputs) != len(program.outputs) or len(states) != len(program.carries):
        return f"the step returns {len(outputs)} outputs and {len(states)} states, the program says otherwise"
    for node in program.step.graph.nodes:
        if node.op != "output" and "val" not in node.meta:
            return f"node {node.name} of the step has no example value"
    return None


def _check_layers(program: StepProgram) -> str | None:
    nodes = {node.name for node in program.step.graph.nodes}
    made = {output for layer in program.layers for output in layer.outputs} | {x.name for x in program.inputs}
    made |= {carry.placeholder for carry in program.carries if carry.statistic} | set(program.draws.names)
    for layer in program.layers:
        unknown = [name for name in (*layer.nodes, *layer.states, *layer.outputs) if name not in nodes]
        if unknown:
            return f"layer {layer.name} names nodes that the step lacks: {unknown}"
        foreign = [source.value for source in layer.sources if source.origin not in made]
        if foreign:
            return f"layer {layer.name} reads what no layer makes: {foreign}"
    return None
