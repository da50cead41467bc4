"""States that outlive their sequence: those of libraries go on, any other is refused."""

from __future__ import annotations

from torch import nn

from tracecompile.capture.loops.assemble import Assembler
from tracecompile.capture.loops.going_on import going_on, left_for_the_next, not_carried
from tracecompile.capture.steps.leftovers import attributes_read, same_results
from tracecompile.capture.tracing.tape import Tape
from tracecompile.errors import UnsupportedState
from tracecompile.program import StepProgram


def with_states_left(program: StepProgram | None, plan: Assembler, left: tuple[str, ...]) -> StepProgram | None:
    """Lets sequences go on from the states that the last one left, where some are."""
    if program is None or not left:
        return program
    found = going_on(program, plan, left)
    if found is None:
        raise left_over_state(plan.tape, (not_carried(plan, left) or left)[0])
    return found


def require_own_state(tape: Tape, model: nn.Module, own: bool = False) -> tuple[str, ...]:
    """Refuses a loop whose states outlive the sequence; returns those of library neurons, kept until reset.

    Args:
        own: Keep those of any other module as well.
    """
    kept = left_for_the_next(tape, model, own)
    if kept:
        return kept
    read = attributes_read(tape)
    written = tape.states_written()
    left_over = [name for name in written if name in read]
    changed = tape.again is not None and not same_results(tape, tape.again)
    if changed and not written:
        raise UnsupportedState(
            "The model computes something else at its next call: a number that it keeps in an attribute has changed.",
            "Hand the number in as an argument, or keep counters out of what forward computes.",
        )
    if left_over or changed:
        raise left_over_state(tape, (left_over or list(written))[0])
    return ()


def left_over_state(tape: Tape, name: str) -> UnsupportedState:
    """Makes the refusal of a state that outlives its sequence."""
    return UnsupportedState(
        f"The state {name} is left over from one sequence to the next.",
        "Set it at the start of forward, before the loop over time, or call the library's reset there.",
        tape.attributes[name].meta.get("where"),
    )


def noted(program: StepProgram | None, notes: tuple[str, ...]) -> StepProgram | None:
    """Adds to the report how the states of a library start, where they outlive a sequence."""
    if program is None or not any(carry.kept for carry in program.carries):
        return program
    return program.evolve(notes=(*program.notes, *notes))
