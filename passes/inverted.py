"""What a program must be whose layers have the local graphs of a rule: the promise of insert_rate_inversion."""

from __future__ import annotations

from tracecompile.analysis.norms import is_norm
from tracecompile.graphs.glue import accruals_of
from tracecompile.layers import STATISTICS, Layer, Pair
from tracecompile.passes.compared import returned_by, taken_by
from tracecompile.program import StepProgram
from tracecompile.rules.measured.lines import FROM
from tracecompile.rules.rule import CoreRule


def fault_of_layer(program: StepProgram, layer: Layer) -> str | None:
    """Returns what a layer lacks for its backward pass, or None."""
    norms = tuple(node.name for node in layer.synapse.graph.nodes if is_norm(program, node))
    if layer.norms != norms:
        return f"{layer.name} records the statistics of {list(layer.norms)}, not of {list(norms)}"
    takes = [*(source.value for source in layer.sources), *layer.synapse_statics]
    if layer.local is None:
        return f"{layer.name} has no local graph"
    taken = taken_by(layer.local)
    if taken[: len(takes)] != takes or len(taken) != len(takes) + len(STATISTICS) * len(norms):
        return f"the local graph of {layer.name} takes {taken}, not {takes} and statistics"
    if len(returned_by(layer.local)) != len(layer.currents):
        return f"the local graph of {layer.name} does not lead to {list(layer.currents)}"
    if (layer.response is None) != (layer.core is None):
        return f"{layer.name} has {'no ' if layer.response is None else ''}response"
    return None if layer.response is None else _fault_of_core(layer, layer.response)


def _fault_of_core(layer: Layer, made: CoreRule) -> str | None:
    """Returns why what a rule makes of a core does not carry what it says, or None."""
    roles = [accrual.role for accrual in made.accruals]
    owners = {accrual.layer for accrual in made.accruals}
    if roles != sorted(roles, key=("tangent", "response").index) or not owners <= {layer.name}:
        return f"{layer.name} does not carry tangents, then responses, of its own"
    if made.graph is None:
        return f"nothing moves on what {layer.name} carries" if made.accruals else None
    takes = [*layer.currents, *layer.states, *layer.core_statics, *(accrual.name for accrual in made.accruals)]
    if taken_by(made.graph) != takes:
        return f"the core of {layer.name} in trace form takes {taken_by(made.graph)}, not {takes}"
    (outputs, states), moved, answers, derivatives = returned_by(made.graph)
    found = tuple(map(len, (outputs, states, moved, answers)))
    if found != (len(layer.outputs), len(layer.states), len(roles), roles.count("response")):
        return f"the core of {layer.name} in trace form does not return what it has and carries"
    if any(isinstance(row, int) and row >= len(derivatives) for row in made.rows.values()):
        return f"derivatives of {layer.name} are missing"
    forgotten = [pair for pair in made.rows if pair[0] in layer.outputs and not _is_answered(layer, made, pair)]
    return f"{layer.name} does not carry how {forgotten[0][0]} answers to {forgotten[0][1]}" if forgotten else None


def _is_answered(layer: Layer, made: CoreRule, pair: Pair) -> bool:
    """Tells whether a response is carried for a derivative, or for a variable with all the same derivatives."""
    output, variable = pair
    if variable in layer.states:
        variable = f"{FROM}{variable}"
    carried = {accrual.pair[1] for accrual in made.accruals if accrual.role == "response" and accrual.pair[0] == output}
    results = {result for result, _ in made.rows}
    return variable in carried or any(
        all(made.rows.get((result, other)) == made.rows.get((result, variable)) for result in results)
        for other in carried
    )


def fault_of_carries(before: StepProgram, after: StepProgram) -> str | None:
    """Returns why the step does not carry traces, statistics and what layers do, each by a name of its own, or None."""
    wanted = [(layer.name, norm, what) for layer in after.layers for norm in layer.norms for what in STATISTICS]
    count = len(before.traces_kept)
    added = [(accrual.layer, *accrual.pair) for accrual in after.traces_kept[count:] if accrual.role == "trace"]
    if after.traces_kept[:count] != before.traces_kept or added != wanted:
        return "the step does not carry the traces as they were, and a mean and a variance for each normalisation"
    carried = [*after.traces_kept, *(accrual for layer in after.layers for accrual in accruals_of(layer))]
    names = [*(node.name for node in after.step.graph.nodes), *(accrual.name for accrual in carried)]
    double = sorted({name for name in names if names.count(name) > 1}) if len(names) != len(set(names)) else []
    return f"names that mean two things: {double}" if double else None
