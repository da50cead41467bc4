"""Models that loop over time themselves."""

from __future__ import annotations

from typing import Any

import torch
from torch import fx, nn
from torch.utils import _pytree as pytree

from tracecompile.capture.copying.copies import plain_attributes, share_parameters
from tracecompile.capture.copying.fresh_start import start_afresh
from tracecompile.capture.layerwise.forwarding import forward_stacked_values
from tracecompile.capture.layerwise.sinking import sink_into_steps
from tracecompile.capture.loops.assemble import Assembler
from tracecompile.capture.loops.going_on import going_on, left_for_the_next
from tracecompile.capture.loops.lengths import TimeSource, make_lengths_symbolic
from tracecompile.capture.loops.loop_body import sort_into_steps, visit_counts
from tracecompile.capture.signature import leaf_names
from tracecompile.capture.steps.leftovers import attributes_read, same_results, shape_by_input
from tracecompile.capture.tracing.build import same_graph
from tracecompile.capture.tracing.step_mode import in_single_steps
from tracecompile.capture.tracing.tape import Tape
from tracecompile.capture.tracing.trace_errors import ModelFailure, TooManySteps
from tracecompile.capture.tracing.tracer import Recorder
from tracecompile.capture.tracing.unpacking import separate_unpacked
from tracecompile.errors import UnrollableLoop, UnsupportedState
from tracecompile.program import StepProgram

SHORT, LONGER = 5, 6
VISITS = 400
FEWEST_STEPS = 3


def capture_sequence(model: nn.Module, args: tuple[Any, ...], kwargs: dict[str, Any]) -> StepProgram | None:
    """Captures a loop whose length is that of an input's axis, or a number handed in; None where nothing is."""
    model = share_parameters(model)
    notes = start_afresh(model)
    for source in time_sources(args, kwargs):
        short = short_trace(model, args, kwargs, source, SHORT)
        if short is None or max(visit_counts(short).values(), default=0) < SHORT - 1:
            continue
        longer = short_trace(model, args, kwargs, source, LONGER)
        if longer is None:
            continue
        separate_unpacked(short, longer)
        separate_unpacked(longer, short)
        root = in_single_steps(share_parameters(model))
        for tape in (short, longer):
            sink_into_steps(tape, root)
            if tape.again is not None:
                sink_into_steps(tape.again, root)
        before, after = visit_counts(short), visit_counts(longer)
        growth = {key: count - before.get(key, 0) for key, count in after.items()}
        if not any(growth.values()):
            continue
        program = roll_both(model, (short, longer), growth, source, pytree.tree_structure((args, kwargs)))
        if program is not None:
            return noted(program.evolve(time=(source.axis, source.number)), notes)
    return None


def capture_fixed_loop(model: nn.Module, args: tuple[Any, ...], kwargs: dict[str, Any]) -> StepProgram | None:
    """Captures a loop whose length the model fixes; None where there is none."""
    model = share_parameters(model)
    notes = start_afresh(model)
    copy = share_parameters(model)
    before = plain_attributes(copy)
    tape = Recorder(copy).run(args, kwargs, leaf_names(model, args, kwargs))
    changed = bool(tape.written) or plain_attributes(copy) != before
    separate_unpacked(tape)
    sink_into_steps(forward_stacked_values(shape_by_input(tape), copy), copy)
    counts = visit_counts(tape)
    refusal: UnrollableLoop | None = None
    for steps in likely_lengths(counts):
        per_step = {key: visits_in_a_step(count, steps) for key, count in counts.items()}
        try:
            loop = sort_into_steps(tape, steps, per_step)
            root = share_parameters(model)
            plan = Assembler(root, loop, pytree.tree_structure((args, kwargs)))
            program = plan.assemble(steps)
        except UnrollableLoop as error:
            refusal = refusal or error
            continue
        if program is None:
            return None
        if changed:
            second = share_parameters(copy)
            tape.again = Recorder(second).run(args, kwargs, leaf_names(model, args, kwargs))
            sink_into_steps(forward_stacked_values(shape_by_input(tape.again), second), second)
        return noted(with_states_left(program, plan, require_own_state(tape, model)), notes)
    if refusal is not None:
        raise refusal
    return None


def noted(program: StepProgram | None, notes: tuple[str, ...]) -> StepProgram | None:
    """Adds to the report how the states of a library start, where they outlive a sequence."""
    if program is None or not any(carry.kept for carry in program.carries):
        return program
    return program.evolve(notes=(*program.notes, *notes))


def likely_lengths(counts: dict[Any, int]) -> list[int]:
    """Returns the numbers of visits that most places share, the likeliest number of steps first."""
    frequency: dict[int, int] = {}
    for count in counts.values():
        frequency[count] = frequency.get(count, 0) + 1
    lengths = [count for count in frequency if count >= FEWEST_STEPS]
    return sorted(lengths, key=lambda count: (-frequency[count], -count))[:3]


def visits_in_a_step(count: int, steps: int) -> int:
    """Returns how often a place is visited in one step, given all its visits; 0 for one outside the loop."""
    if count % steps == 0:
        return count // steps
    return 1 if count == steps - 1 else 0


def time_sources(args: tuple[Any, ...], kwargs: dict[str, Any]) -> list[TimeSource]:
    """Returns what may say how many steps there are, the likeliest first."""
    axes = range(dimensions(args, kwargs))
    numbers = [
        (position, leaf)
        for position, leaf in enumerate(pytree.tree_leaves((args, kwargs)))
        if isinstance(leaf, int) and not isinstance(leaf, bool) and leaf > 0
    ]
    first = first_tensor(args, kwargs)
    both = [
        TimeSource(axis, position)
        for position, leaf in numbers
        for axis in axes
        if first is not None and first.shape[axis] == leaf
    ]
    return [*both, *(TimeSource(axis) for axis in axes), *(TimeSource(None, position) for position, _ in numbers)]


def dimensions(args: tuple[Any, ...], kwargs: dict[str, Any]) -> int:
    """Returns the number of axes of the first tensor argument."""
    first = first_tensor(args, kwargs)
    return 0 if first is None else first.dim()


def first_tensor(args: tuple[Any, ...], kwargs: dict[str, Any]) -> torch.Tensor | None:
    """Returns the first tensor among the arguments."""
    return next((leaf for leaf in pytree.tree_leaves((args, kwargs)) if isinstance(leaf, torch.Tensor)), None)


def resized(
    args: tuple[Any, ...], kwargs: dict[str, Any], source: TimeSource, length: int
) -> tuple[tuple[Any, ...], dict[str, Any]]:
    """Cuts or repeats the example to a length along an axis, in every tensor that has the first one's length there."""
    if source.number is not None:
        leaves, spec = pytree.tree_flatten((args, kwargs))
        leaves[source.number] = length
        args, kwargs = pytree.tree_unflatten(leaves, spec)
    first, axis = first_tensor(args, kwargs), source.axis
    if first is None or axis is None:
        return args, kwargs
    present = first.shape[axis]

    def change(leaf: Any) -> Any:
        if isinstance(leaf, torch.Tensor) and leaf.dim() > axis and leaf.shape[axis] == present and present:
            return leaf.detach().index_select(axis, torch.arange(length, device=leaf.device) % present)
        return leaf

    changed: tuple[tuple[Any, ...], dict[str, Any]] = pytree.tree_map(change, (args, kwargs))
    return changed


def short_trace(
    model: nn.Module, args: tuple[Any, ...], kwargs: dict[str, Any], source: TimeSource, length: int
) -> Tape | None:
    """Traces the model on an example of another length; None where the model cannot take that."""
    try:
        copy = share_parameters(model)
        short_args, short_kwargs = resized(args, kwargs, source, length)
        names = leaf_names(model, args, kwargs)
        before = plain_attributes(copy)
        tape = Recorder(copy, VISITS).run(short_args, short_kwargs, names)
        if tape.written or plain_attributes(copy) != before:
            second = share_parameters(copy)
            again = shape_by_input(Recorder(second, VISITS).run(short_args, short_kwargs, names))
            tape.again = forward_stacked_values(again, second)
        return forward_stacked_values(shape_by_input(tape), copy)
    except (ModelFailure, TooManySteps):
        return None


def roll_both(
    model: nn.Module, tapes: tuple[Tape, Tape], growth: dict[Any, int], source: TimeSource, signature: pytree.TreeSpec
) -> StepProgram | None:
    """Rolls both traces and refuses them where they are not the same program."""
    left, _ = (require_own_state(tape, model) for tape in tapes)
    make_lengths_symbolic(tapes, (SHORT, LONGER), growth, source)
    programs = []
    for tape, steps in zip(tapes, (SHORT, LONGER), strict=True):
        loop = sort_into_steps(tape, steps, growth)
        plan = Assembler(share_parameters(model), loop, signature, source.clock(tape))
        programs.append(with_states_left(plan.assemble(None), plan, left))
    short, longer = programs
    if short is None or longer is None:
        return None
    for name in ("prologue", "step", "epilogue"):
        one, other = getattr(short, name).graph, getattr(longer, name).graph
        if not same_graph(one, other):
            raise length_matters(one, other)
    return short


def length_matters(one: fx.Graph, other: fx.Graph) -> UnrollableLoop:
    """Makes the refusal of a model that computes something else for another length."""
    where = None
    for first, second in zip(one.nodes, other.nodes, strict=False):
        plain = [repr(fx.map_arg((node.args, node.kwargs), lambda used: None)) for node in (first, second)]
        if first.op != "placeholder" and (str(first.target) != str(second.target) or plain[0] != plain[1]):
            where = first.meta.get("where")
            break
    return UnrollableLoop(
        "What the model computes depends on the number of time steps in a way that cannot be kept symbolic.",
        "Compute with x.shape[...] rather than with len(x) or a counter.",
        where,
    )


def with_states_left(program: StepProgram | None, plan: Assembler, left: tuple[str, ...]) -> StepProgram | None:
    """Lets sequences go on from the states that the last one left, where some are."""
    if program is None or not left:
        return program
    found = going_on(program, plan, left)
    if found is None:
        raise left_over_state(plan.tape, left[0])
    return found


def require_own_state(tape: Tape, model: nn.Module) -> tuple[str, ...]:
    """Refuses a loop whose states outlive the sequence; returns those of library neurons, kept until reset."""
    kept = left_for_the_next(tape, model)
    if kept:
        return kept
    read = attributes_read(tape)
    left_over = [name for name in tape.written if name in read]
    changed = tape.again is not None and not same_results(tape, tape.again)
    if changed and not tape.written:
        raise UnsupportedState(
            "The model computes something else at its next call: a number that it keeps in an attribute has changed.",
            "Hand the number in as an argument, or keep counters out of what forward computes.",
        )
    if left_over or changed:
        raise left_over_state(tape, (left_over or list(tape.written))[0])
    return ()


def left_over_state(tape: Tape, name: str) -> UnsupportedState:
    """Makes the refusal of a state that outlives its sequence."""
    return UnsupportedState(
        f"The state {name} is left over from one sequence to the next.",
        "Set it at the start of forward, before the loop over time, or call the library's reset there.",
        tape.attributes[name].meta.get("where"),
    )
