"""Loops of which only one length is looked at: those whose length the model fixes, and those that depend on it."""

from __future__ import annotations

from typing import Any

from torch import nn
from torch.utils import _pytree as pytree

from tracecompile.capture.copying.copies import plain_attributes, share_parameters
from tracecompile.capture.copying.fresh_start import start_afresh
from tracecompile.capture.layerwise.forwarding import forward_stacked_values
from tracecompile.capture.layerwise.sinking import sink_into_steps
from tracecompile.capture.loops.assemble import Assembler
from tracecompile.capture.loops.histories import forward_histories
from tracecompile.capture.loops.loop_body import sort_into_steps
from tracecompile.capture.loops.nesting import separate_loops
from tracecompile.capture.loops.own_state import noted, require_own_state, with_states_left
from tracecompile.capture.loops.places import visit_counts
from tracecompile.capture.signature import leaf_names
from tracecompile.capture.steps.leftovers import shape_by_input
from tracecompile.capture.tracing.tape import Tape
from tracecompile.capture.tracing.tracer import Recorder
from tracecompile.capture.tracing.unpacking import separate_unpacked
from tracecompile.errors import UnrollableLoop
from tracecompile.program import StepProgram

FEWEST_STEPS = 3


def capture_fixed_loop(model: nn.Module, args: tuple[Any, ...], kwargs: dict[str, Any]) -> StepProgram | None:
    """Captures a loop of as many steps as it makes in this call; None where there is none."""
    model = share_parameters(model)
    notes = start_afresh(model)
    names = leaf_names(model, args, kwargs)
    copy = share_parameters(model)
    before = plain_attributes(copy)
    tape = Recorder(copy).run(args, kwargs, names)
    changed = bool(tape.written) or plain_attributes(copy) != before
    again = Recorder(second := share_parameters(copy)).run(args, kwargs, names) if changed else None
    refusal: UnrollableLoop | None = None
    lengths = likely_lengths(visit_counts(tape))
    for steps in lengths[:1]:
        _prepare(tape, copy, steps)
        if again is not None:
            _prepare(again, second, steps)
            tape.again = again
    for steps in lengths:
        counts = visit_counts(tape)
        per_step = {key: visits_in_a_step(count, steps) for key, count in counts.items()}
        try:
            loop = sort_into_steps(tape, steps, per_step)
            plan = Assembler(share_parameters(model), loop, pytree.tree_structure((args, kwargs)))
            program = plan.assemble(steps)
        except UnrollableLoop as error:
            refusal = refusal or error
            continue
        if program is None:
            return None
        return noted(with_states_left(program, plan, require_own_state(tape, model)), notes)
    if refusal is not None:
        raise refusal
    return None


def _prepare(tape: Tape, copy: nn.Module, steps: int) -> None:
    """Brings what is computed of whole sequences into the steps."""
    separate_unpacked(tape)
    separate_loops(tape, steps)
    sink_into_steps(forward_stacked_values(forward_histories(shape_by_input(tape)), copy), copy)


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
