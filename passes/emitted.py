"""What the emitted code of a program must be: the promise of emit_module, looked up in the graphs that it has made."""

from __future__ import annotations

from collections.abc import Iterator
from typing import Any

from torch import fx

from tracecompile.emitted import Emitted
from tracecompile.graphs.glue import accruals_of
from tracecompile.layers import STATISTICS, Accrual
from tracecompile.passes.compared import difference, returned_by, taken_by
from tracecompile.passes.glued import differs_from_step, stand_ins
from tracecompile.program import StepProgram, step_results
from tracecompile.rules.accumulation import accumulated, decayed
from tracecompile.rules.norm import batch_statistics


def accruals_carried(program: StepProgram) -> tuple[Accrual, ...]:
    """Returns what the step in trace form carries beside the states: the traces, then what the layers do."""
    return (*program.traces_kept, *(accrual for layer in program.layers for accrual in accruals_of(layer)))


def fault_of_plain(program: StepProgram, emitted: Emitted) -> str | None:
    """Returns in what the plain step is not the captured one, or None."""
    if taken_by(emitted.plain) != _arguments(program):
        return f"the emitted step takes {taken_by(emitted.plain)}, not {_arguments(program)}"
    outputs, states, *more = returned_by(emitted.plain)
    if (len(outputs), len(states), more) != (len(program.outputs), len(program.carries), [(), (), ()]):
        return "the emitted step returns other things than the captured one"
    fault = differs_from_step(program, emitted.plain.graph, (outputs, states))
    return None if fault is None else f"the emitted step computes something else than the captured one: {fault}"


def fault_of_traced(program: StepProgram, emitted: Emitted) -> str | None:
    """Returns in what the step in trace form is not the captured one with its traces and accruals, or None."""
    carried = accruals_carried(program)
    if emitted.accruals != carried:
        return f"the emitted step carries {_names(emitted.accruals)}, not {_names(carried)}"
    takes = [*_arguments(program), *_names(carried)]
    if taken_by(emitted.traced) != takes:
        return f"the emitted step in trace form takes {taken_by(emitted.traced)}, not {takes}"
    results = returned_by(emitted.traced)
    expected = (program.outputs, program.carries, carried, program.traces_kept, program.layers)
    if list(map(len, results)) != list(map(len, expected)):
        return "the emitted step in trace form returns other things than it says"
    fault = difference(_values_alike(program, results), _known(program, emitted, results))
    if fault is not None:
        return f"the emitted step in trace form computes something else than the captured one: {fault}"
    return _fault_of_traces(program, emitted, *results[2:4])


def fault_around_the_step(program: StepProgram, emitted: Emitted) -> str | None:
    """Returns in what the code before and after the loop is not that of the program, or None."""
    if len(program.ports) != len(program.outputs) + len(program.carries):
        return "there is not one port for each output and state"
    for name, attributes in (("prologue", emitted.prologue_attributes), ("epilogue", emitted.epilogue_attributes)):
        code: fx.GraphModule = getattr(emitted, name)
        if len(taken_by(code)) != len(attributes) + len(taken_by(getattr(program, name))):
            return f"the emitted {name} does not take {list(attributes)} and the arguments of the captured one"
        if any(node.op == "get_attr" for node in code.graph.nodes):
            return f"the emitted {name} reads an attribute that is not among its arguments"
    return None


def _arguments(program: StepProgram) -> list[str]:
    static = program.statics.names if program.statics is not None else ()
    return list(dict.fromkeys([*taken_by(program.step), *static]))


def _names(accruals: tuple[Accrual, ...]) -> list[str]:
    return [accrual.name for accrual in accruals]


def _known(program: StepProgram, emitted: Emitted, results: Any) -> dict[fx.Node, fx.Node]:
    """Returns what stands for what: a rule may compute a core in another way, and so its outputs are taken as given."""
    nodes = {node.name: node for node in program.step.graph.nodes}
    known = stand_ins(program, emitted.traced.graph)
    for layer, (outputs, _, _) in zip(program.layers, results[4], strict=True):
        known.update({nodes[name]: value for name, value in zip(layer.outputs, outputs, strict=False)})
    return known


def _values_alike(program: StepProgram, results: Any) -> Iterator[tuple[fx.Node, fx.Node]]:
    """Yields what is returned, and what the traces read, but for the next states within cores."""
    nodes = {node.name: node for node in program.step.graph.nodes}
    outputs = {name for layer in program.layers for name in layer.outputs}
    within = {name for core in program.cores for name in core.nodes} - outputs
    for group, found in zip(step_results(program.step), results, strict=False):
        yield from (pair for pair in zip(group, found, strict=True) if pair[0].name not in within)
    for accrual, value in zip(program.traces_kept, results[3], strict=True):
        if not accrual.pair[1]:
            yield nodes[accrual.pair[0]], value
        elif getattr(value.args[0], "target", None) is batch_statistics:
            yield nodes[accrual.pair[0]].all_input_nodes[0], value.args[0].args[0]


def _fault_of_traces(
    program: StepProgram, emitted: Emitted, moved: tuple[fx.Node, ...], read: tuple[fx.Node, ...]
) -> str | None:
    """Returns which trace does not add up what it reads, or None."""
    totals = {node.name: node for node in emitted.traced.graph.nodes if node.op == "placeholder"}
    for accrual, line, value in zip(program.traces_kept, moved, read, strict=False):
        left = () if accrual.decay is None else (accrual.decay,)
        adds = accumulated if accrual.decay is None else decayed
        if (line.target, line.args) != (adds, (totals[accrual.name], value, *left)):
            return f"{accrual.name} does not add up {accrual.pair[0]}"
        if accrual.pair[1] and value.args[1:] != (STATISTICS.index(accrual.pair[1]),):
            return f"{accrual.name} does not read the {accrual.pair[1]} of {accrual.pair[0]}"
    return None
