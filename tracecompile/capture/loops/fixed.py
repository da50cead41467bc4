"""Loops of which only one length is looked at: those whose length the model fixes, and those that depend on it."""

from __future__ import annotations

from collections.abc import Iterator
from typing import Any

from torch import Tensor, nn
from torch.utils import _pytree as pytree

from tracecompile.capture.copying.copies import plain_attributes, share_parameters
from tracecompile.capture.copying.fresh_start import start_afresh
from tracecompile.capture.copying.statistics import find_statistics, with_statistics
from tracecompile.capture.layerwise.stepwise import work_step_by_step
from tracecompile.capture.loops.assemble import Assembler
from tracecompile.capture.loops.backwards import naming_what_is_read_backwards
from tracecompile.capture.loops.histories import forward_histories
from tracecompile.capture.loops.lengths import TimeSource
from tracecompile.capture.loops.loop_body import sort_into_steps
from tracecompile.capture.loops.nesting import separate_loops
from tracecompile.capture.loops.own_state import noted, require_own_state, with_states_left
from tracecompile.capture.loops.peeled import join_first_step
from tracecompile.capture.loops.places import visit_counts
from tracecompile.capture.loops.resizing import first_tensor
from tracecompile.capture.segments.divide import divided
from tracecompile.capture.segments.join import join
from tracecompile.capture.signature import leaf_names
from tracecompile.capture.steps.leftovers import shape_by_input
from tracecompile.capture.tracing.draws import with_all_draws
from tracecompile.capture.tracing.step_mode import in_single_steps
from tracecompile.capture.tracing.tape import Tape
from tracecompile.capture.tracing.trace_errors import TooManySteps
from tracecompile.capture.tracing.tracer import Recorder
from tracecompile.capture.tracing.unpacking import separate_unpacked
from tracecompile.errors import ConversionError, UnrollableLoop, UnsupportedOperation
from tracecompile.program import StepProgram

FEWEST_STEPS = 3
MANY_STEPS = 8
"""A call of a model that keeps its own states is one step of a longer sequence, though it may loop within; a call that
loops as often as this is a sequence itself, and its states go on from one to the next."""


def capture_kept_loop(model: nn.Module, args: tuple[Any, ...], kwargs: dict[str, Any]) -> StepProgram | None:
    """Captures a loop within one call whose states outlive the call: one image shown to neurons reset from outside."""
    try:
        program = capture_fixed_loop(model, args, kwargs, kept=True)
    except (ConversionError, TooManySteps):
        return None
    return program if program is not None and any(carry.kept for carry in program.carries) else None


def capture_fixed_loop(
    model: nn.Module, args: tuple[Any, ...], kwargs: dict[str, Any], kept: bool = False
) -> StepProgram | None:
    """Captures a loop of as many steps as it makes in this call, whatever says so; None where there is none.

    Args:
        kept: Look no further where no state outlives the call, and let those of any module.
    """
    model = share_parameters(model)
    notes = start_afresh(model)
    names = leaf_names(model, args, kwargs)
    copy = share_parameters(model)
    before = plain_attributes(copy)
    tape = Recorder(copy).run(args, kwargs, names)
    changed = bool(tape.written) or plain_attributes(copy) != before
    if kept and not tape.written:
        return None
    statistics = find_statistics(model, tape, args, kwargs, None)
    if changed:
        tape.again = with_statistics(Recorder(share_parameters(copy)).run(args, kwargs, names), statistics)
    with_statistics(tape, statistics)
    for one in (tape, *([tape.again] if tape.again is not None else [])):
        join_first_step(one)
    refusal: ConversionError | None = None
    for steps, axis in _guesses(tape, first_tensor(args, kwargs)):
        try:
            trial = _prepared(tape.copy(), steps)
            left = require_own_state(trial, model, own=kept and steps >= MANY_STEPS)
            program = _rolled(model, trial, steps, TimeSource(axis), pytree.tree_structure((args, kwargs)), left)
        except (UnrollableLoop, UnsupportedOperation) as error:
            refusal = refusal or error
            continue
        if program is None:
            return None
        return noted(program, notes)
    if refusal is not None:
        raise refusal
    return None


def _guesses(tape: Tape, first: Tensor | None) -> Iterator[tuple[int, int | None]]:
    """Yields how many steps the loop may make and along which axis of the arguments, the likeliest first."""
    for steps in likely_lengths(visit_counts(tape)):
        axes: list[int | None] = []
        if first is not None:
            axes += [axis for axis, size in enumerate(first.shape) if size == steps]
        yield from ((steps, axis) for axis in axes or [None])


def _prepared(tape: Tape, steps: int) -> Tape:
    separate_unpacked(tape)
    separate_loops(tape, steps)
    if tape.again is not None:
        tape.again = _prepared(tape.again, steps)
    return forward_histories(shape_by_input(tape))


def _rolled(
    model: nn.Module, tape: Tape, steps: int, source: TimeSource, signature: pytree.TreeSpec, left: tuple[str, ...]
) -> StepProgram | None:
    """Rolls a trace, or what lies between any two places of it that mix time steps."""
    root = in_single_steps(share_parameters(model))
    segments = [segment for (segment,) in divided([tape], root, steps, source, left)]
    programs: list[StepProgram] = []
    for segment in segments:
        part = segment.tape
        for one in (part, *([part.again] if part.again is not None else [])):
            work_step_by_step(one, root, steps, segment.source.axis)
        per_step = {key: visits_in_a_step(count, steps) for key, count in visit_counts(part).items()}
        with naming_what_is_read_backwards(part):
            loop = sort_into_steps(part, steps, per_step)
            of_call = signature if segment.is_whole else segment.signature
            plan = Assembler(share_parameters(model), loop, of_call)
            own = tuple(name for name in left if name in part.attributes)
            program = with_states_left(plan.assemble(steps), plan, own)
        if program is None:
            return None
        programs.append(with_all_draws(program, model, part))
    return programs[0] if len(programs) == 1 else join(tape, segments, programs, signature)


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
