"""Models that loop over time themselves."""

from __future__ import annotations

from collections.abc import Iterator
from typing import Any

from torch import fx, nn

from tracecompile.capture.copying.copies import share_parameters
from tracecompile.capture.copying.fresh_start import start_afresh
from tracecompile.capture.layerwise.stepwise import work_step_by_step
from tracecompile.capture.loops.assemble import Assembler
from tracecompile.capture.loops.backwards import naming_what_is_read_backwards
from tracecompile.capture.loops.conditions import condition_on_length, needed_length
from tracecompile.capture.loops.fixed import capture_fixed_loop
from tracecompile.capture.loops.lengths import TimeSource, make_lengths_symbolic
from tracecompile.capture.loops.loop_body import sort_into_steps
from tracecompile.capture.loops.own_state import noted, require_own_state, with_states_left
from tracecompile.capture.loops.places import visit_counts
from tracecompile.capture.loops.resizing import length_of, time_sources
from tracecompile.capture.loops.traced import Traces, growth_of
from tracecompile.capture.segments.divide import divided
from tracecompile.capture.segments.join import join
from tracecompile.capture.segments.piece import Segment
from tracecompile.capture.steps.step import capture_call
from tracecompile.capture.tracing.build import same_graph
from tracecompile.capture.tracing.draws import with_all_draws
from tracecompile.capture.tracing.step_mode import in_single_steps
from tracecompile.capture.tracing.tape import Tape
from tracecompile.errors import LengthMatters, UnrollableLoop
from tracecompile.program import StepProgram
from tracecompile.segment import segments_of

AT_LENGTH = (
    "What the model computes depends on the number of time steps: it is captured anew for each, and what was is kept."
)
SHORT = 5
MOST_LEFT_OUT = 2
LONGER = (11, 23)
"""Lengths of the traces that are tried where shorter ones do not show the loop as it is at every length."""


def capture_sequence(model: nn.Module, args: tuple[Any, ...], kwargs: dict[str, Any]) -> StepProgram | None:
    """Captures a loop whose length is that of an input's axis, or a number handed in; None where nothing is.

    What is another program at every length is captured as it is at the length of this call.
    """
    alone = share_parameters(model)
    notes = start_afresh(alone)
    for source in time_sources(args, kwargs):
        try:
            program = _of_source(Traces(alone, args, kwargs, source))
        except LengthMatters as refusal:
            matters = refusal
        else:
            if program is None:
                continue
            return noted(program.evolve(time=(source.axis, source.number)), notes)
        program = capture_at_length(model, args, kwargs, source)
        if program is None:
            raise matters
        return program
    return None


def _of_source(traces: Traces) -> StepProgram | None:
    """Captures the loop as it is at every length, from traces of two of them, as short as will do."""
    refusal: UnrollableLoop | None = None
    for length in _lengths(traces):
        pair = traces.pair(length)
        if traces.endless:
            break
        if pair is None:
            continue
        if not any(growth_of(pair).values()):
            if refusal is not None:
                break
            if length > SHORT:
                traces.require_no_earlier_end(SHORT)
            traces.require_no_slower_growth(length)
            return None
        try:
            return roll_both(traces, pair, length)
        except UnrollableLoop as error:
            refusal = refusal or error
    if refusal is not None:
        raise refusal
    return None


def _lengths(traces: Traces) -> Iterator[int]:
    """Yields the lengths to try: what the user's code compares step numbers with has to lie within the trace."""
    first = traces.raw(SHORT)
    needed = SHORT if first is None else needed_length(first, SHORT)
    yield needed
    yield from (length for length in (*LONGER, 2 * needed + 1) if length > needed)


def capture_at_length(
    model: nn.Module, args: tuple[Any, ...], kwargs: dict[str, Any], source: TimeSource
) -> StepProgram | None:
    """Captures a loop as it is at the length of this call alone; None where there is none."""
    model = share_parameters(model)
    notes = start_afresh(model)
    traces, length = Traces(model, args, kwargs, source, at_length=True), length_of(args, kwargs, source)
    pair = traces.pair(length)
    if pair is not None and steps_left_out(pair[0], length, growth_of(pair)) is not None:
        (program,) = _rolled(traces, pair, (length,))
    else:
        # A loop of one or two steps is not seen to be one.
        program = capture_fixed_loop(model, args, kwargs) or capture_call(model, args, kwargs, in_time=True)
    if program is None:
        return None
    program = program.evolve(time=(source.axis, source.number), length_bound=True, notes=(*program.notes, AT_LENGTH))
    return noted(program, notes)


def _rolled(traces: Traces, tapes: tuple[Tape, Tape], lengths: tuple[int, ...]) -> list[StepProgram | None]:
    """Rolls the traces of some lengths, which two of them tell the loop of."""
    model, source = traces.model, traces.source
    root = in_single_steps(share_parameters(model))
    left_out = steps_left_out(tapes[0], lengths[0], growth_of(tapes)) or 0
    left, _ = (require_own_state(tape, model) for tape in tapes)
    pairs = divided(tapes, root, lengths[0] - left_out, source, left)
    rolled = [_rolled_alone(traces, pair, lengths, left_out, left) for pair in pairs]
    if len(rolled) == 1:
        return rolled[0]
    return [
        join(tape, [pair[place] for pair in pairs], programs, traces.signature)  # type: ignore[arg-type]
        if None not in (programs := [each[place] for each in rolled]) else None
        for place, tape in enumerate(tapes[: len(lengths)])
    ]  # fmt: skip


def _rolled_alone(
    traces: Traces, pair: tuple[Segment, ...], lengths: tuple[int, ...], left_out: int, left: tuple[str, ...]
) -> list[StepProgram | None]:
    """Rolls what lies between two places that mix time steps, or all of a model that has none."""
    model = traces.model
    root = in_single_steps(share_parameters(model))
    tapes, source = (pair[0].tape, pair[1].tape), pair[0].source
    for tape, length in zip(tapes, (lengths[0], lengths[0] + 1), strict=True):
        for one in (tape, *([tape.again] if tape.again is not None else [])):
            work_step_by_step(one, root, length - left_out, source.axis)
    growth = growth_of(tapes)
    own = tuple(name for name in left if name in tapes[0].attributes)
    make_lengths_symbolic(tapes, (lengths[0], lengths[0] + 1), growth, source)
    programs = []
    for segment, length in zip(pair, lengths, strict=False):
        tape = segment.tape
        with naming_what_is_read_backwards(tape):
            loop = sort_into_steps(tape, length - left_out, growth)
            signature = traces.signature if segment.is_whole else segment.signature
            plan = Assembler(share_parameters(model), loop, signature, source.clock(tape), source.axis or 0)
            program = with_states_left(plan.assemble(None), plan, own)
        programs.append(program and with_all_draws(program, model, tape))
    return programs


def roll_both(traces: Traces, tapes: tuple[Tape, Tape], length: int) -> StepProgram | None:
    """Rolls the traces of two lengths and refuses them where they are not the same program."""
    condition = condition_on_length(tapes)
    short, longer = _rolled(traces, tapes, (length, length + 1))
    if short is None or longer is None:
        return None
    if condition is not None:
        raise LengthMatters(
            "The model compares the number of time steps, so that it is another program at another length.",
            "Compute with x.shape[...] without a condition on it.",
            condition.where,
        )
    _require_same(short, longer)
    return short


def _require_same(short: StepProgram, longer: StepProgram) -> None:
    for (_, one), (_, other) in zip(segments_of(short.leaves), segments_of(longer.leaves), strict=True):
        _require_same(one.program, other.program)
    for name in ("prologue", "step", "epilogue"):
        one_graph, other_graph = getattr(short, name).graph, getattr(longer, name).graph
        if not same_graph(one_graph, other_graph):
            raise length_matters(one_graph, other_graph)
    if [(one.collect, one.chosen) for one in short.outputs] != [(one.collect, one.chosen) for one in longer.outputs]:
        raise length_matters(short.epilogue.graph, longer.epilogue.graph)


def steps_left_out(tape: Tape, length: int, growth: dict[Any, int]) -> int | None:
    """Returns how many steps fewer than the sequence has the loop makes: one in ``range(1, T)``; None if many."""
    missing: dict[int, int] = {}
    for key, count in visit_counts(tape).items():
        if growth.get(key, 0) > 0 and count % growth[key] == 0:
            steps = length - count // growth[key]
            missing[steps] = missing.get(steps, 0) + 1
    found = max(missing, key=lambda steps: (missing[steps], -abs(steps)), default=0)
    return found if missing and 0 <= found <= MOST_LEFT_OUT else None


def length_matters(one: fx.Graph, other: fx.Graph) -> LengthMatters:
    """Makes the refusal of a model that computes something else for another length."""
    where = None
    for first, second in zip(one.nodes, other.nodes, strict=False):
        plain = [repr(fx.map_arg((node.args, node.kwargs), lambda used: None)) for node in (first, second)]
        if first.op != "placeholder" and (str(first.target) != str(second.target) or plain[0] != plain[1]):
            where = first.meta.get("where")
            break
    return LengthMatters(
        "What the model computes depends on the number of time steps in a way that cannot be kept symbolic.",
        "Compute with x.shape[...] rather than with len(x) or a counter.",
        where,
    )
