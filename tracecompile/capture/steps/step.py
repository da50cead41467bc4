"""Models of which each call is one time step.

The model runs twice on its own leftovers. The first run shows which attributes it writes and how it makes states that
it does not have yet; the second, with every state handed in, *is* the step.
"""

from __future__ import annotations

from typing import Any

from torch import fx, nn
from torch.utils import _pytree as pytree

from tracecompile.capture.copying.copies import share_parameters, tensor_attributes
from tracecompile.capture.copying.fresh_start import start_afresh
from tracecompile.capture.copying.statistics import find_statistics
from tracecompile.capture.loops.places import place_key, visit_counts
from tracecompile.capture.signature import leaf_names
from tracecompile.capture.steps.explicit import StateArguments, find_state_arguments
from tracecompile.capture.steps.single import as_sequence_of_one, starts_a_state
from tracecompile.capture.steps.step_program import StepBuilder
from tracecompile.capture.steps.step_states import State, live_states
from tracecompile.capture.tracing.build import GraphCutter, same_graph
from tracecompile.capture.tracing.draws import with_all_draws
from tracecompile.capture.tracing.tape import Tape
from tracecompile.capture.tracing.tracer import Recorder
from tracecompile.errors import UnrollableLoop
from tracecompile.program import StepProgram

MOST_ROUNDS = 12
"""How often one call of a model of one step may go through the same layer."""


def capture_step(model: nn.Module, args: tuple[Any, ...], kwargs: dict[str, Any]) -> StepProgram | None:
    """Captures one call as the step; None where no state outlives the call."""
    return _captured(model, args, kwargs, stateful=True)


def capture_call(
    model: nn.Module, args: tuple[Any, ...], kwargs: dict[str, Any], in_time: bool = False
) -> StepProgram | None:
    """Captures a call whose time is over after a step or two: one image shown once, say. It is a sequence of one step.

    None where the call starts no state, spikes nowhere, or loops: then it is no matter of time, unless longer calls
    have shown that it is one.

    Args:
        in_time: They have.
    """
    program = _captured(model, args, kwargs, stateful=False, in_time=in_time)
    if program is None or not program.inputs or not (program.leaves or in_time):
        return None
    return as_sequence_of_one(program)


def _captured(
    model: nn.Module, args: tuple[Any, ...], kwargs: dict[str, Any], stateful: bool, in_time: bool = False
) -> StepProgram | None:
    model = share_parameters(model)
    notes = start_afresh(model)
    arguments = find_state_arguments(model, args, kwargs)
    names = leaf_names(model, *arguments.first)
    look = Recorder(share_parameters(model)).run_once(*arguments.first, names)
    if stateful and not look.written and not arguments.filled(look).leaves:
        return None
    first_copy = share_parameters(model)
    first = Recorder(first_copy).run(*arguments.first, names)
    arguments = arguments.filled(first)
    statistics = find_statistics(model, first, *arguments.first, None)
    warm = share_parameters(first_copy)
    steady = run_steady(warm, arguments, first)
    states = live_states(steady, arguments, statistics)
    if any(not state.statistic for state in states) != stateful or not (stateful or in_time or starts_a_state(first)):
        return None
    require_few_rounds(first)
    again = share_parameters(warm)
    require_steady(steady, states, run_steady(again, arguments, steady), arguments, statistics)
    # A call that starts afresh is what the first one was: a later one may still ask what was left for its shape. Only
    # statistics, which go on from call to call, are those of a later one.
    step = steady if states else first
    program = with_all_draws(StepBuilder(model, arguments, first, step, states).build(), model, first, step)
    explicit = all(carry.explicit or carry.statistic for carry in program.carries)
    return program if explicit else program.evolve(notes=(*program.notes, *notes))


def require_few_rounds(first: Tape) -> None:
    """Refuses a call that goes through one layer again and again: written out, it would take memory for each round."""
    counts = {key: count for key, count in visit_counts(first).items() if key[1] == "call_module"}
    for node in first.graph.nodes:
        if counts.get(place_key(node), 0) > MOST_ROUNDS and str(node.target) not in first.leaves:
            raise UnrollableLoop(
                f"One call goes through the layer {node.target} {counts[place_key(node)]} times, in a loop whose "
                "states outlive the call and that cannot be rolled up.",
                "Let every step of the loop be the same, the first one too, and reset the states within forward.",
                node.meta.get("where"),
            )


def run_steady(model: nn.Module, arguments: StateArguments, before: Tape) -> Tape:
    """Runs the model with every state handed in."""
    present = {name for name, _ in tensor_attributes(model)}
    written = {name: before.learning[name] for name in [*before.states, *before.written] if name in present}
    return Recorder(model).run(*arguments.steady, leaf_names(model, *arguments.steady), written, arguments.leaves)


def require_steady(
    steady: Tape, states: list[State], again: Tape, arguments: StateArguments, statistics: tuple[str, ...]
) -> None:
    """Refuses a step that is another one at the next call."""
    following = live_states(again, arguments, statistics)
    same_states = [state.name for state in following] == [state.name for state in states]
    if same_states and same_graph(bare_step(steady, states), bare_step(again, following)):
        return
    where = next((node.meta["where"] for node in reversed(again.graph.nodes) if node.meta.get("where")), None)
    for one, other in zip(steady.graph.nodes, again.graph.nodes, strict=False):
        if (one.op, str(one.target)) != (other.op, str(other.target)) or constants(one) != constants(other):
            where = other.meta.get("where")
            break
    raise UnrollableLoop(
        "The model computes something else at every call.",
        "Make each call the same step; keep counters out of it.",
        where,
    )


def constants(node: fx.Node) -> str:
    """Returns the constant part of a node's arguments."""
    return repr(fx.map_arg((node.args, node.kwargs), lambda used: None))


def bare_step(tape: Tape, states: list[State]) -> fx.Graph:
    """Cuts the step out of a tape for comparison."""
    cutter = GraphCutter()
    for node in tape.graph.nodes:
        if node.op == "placeholder":
            cutter.placeholder(node.name, [node])
    return cutter.finish(
        cutter.take((tuple(pytree.tree_leaves(tape.result)), tuple(state.following for state in states)))
    )
