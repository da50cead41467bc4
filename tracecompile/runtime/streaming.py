"""Streams: a sequence model goes on from its live state, by one step or by several that it may take ahead."""

from __future__ import annotations

from collections.abc import Callable, Iterable, Iterator, Sequence
from typing import Any

import torch
from torch import Tensor

from tracecompile.errors import InvalidInput
from tracecompile.runtime.backward.anchors import with_anchors
from tracecompile.runtime.basis import refuse_change
from tracecompile.runtime.executor import Executor
from tracecompile.runtime.live import count_states
from tracecompile.runtime.outside import refuse_transforms
from tracecompile.runtime.owed import Owed, refuse_owed
from tracecompile.runtime.rerun import Prepared
from tracecompile.runtime.session import Session
from tracecompile.runtime.steady import Steady
from tracecompile.runtime.streams import Step, as_sequences, checked_lookahead, taken
from tracecompile.runtime.together import Together, refuse_ahead

Begun = tuple[Executor, Prepared, Sequence[Any]]
"""What runs steps, what they start from (sequences, where they may be several), and the leaves of their call."""


def stream(
    session: Session, run: Callable[[Sequence[Step], int], list[Any]], steps: Iterable[Any], ahead: int
) -> Iterator[Any]:
    """Returns an iterator over the outputs of the steps of a stream.

    Args:
        session: Of the model.
        run: Does what ``advance`` does, and what has to be done around it.
        steps: What each takes.
        ahead: How many may be run together.

    Raises:
        InvalidInput: That is no number of steps; see ``advance`` and ``_one_by_one``.
    """
    return _stream(session, run, steps, checked_lookahead(ahead))


def _stream(
    session: Session, run: Callable[[Sequence[Step], int], list[Any]], steps: Iterable[Any], ahead: int
) -> Iterator[Any]:
    if session.executor is not None:
        session.executor.single.begin()
    for group in taken(steps, ahead):
        outputs = run(group, ahead)
        yield from outputs if ahead == 1 else _one_by_one(session, outputs)


def advance(session: Session, steps: Sequence[Step], ahead: int) -> list[Any]:
    """Runs the next steps of a stream.

    Args:
        session: Of the model.
        steps: What each takes: alike, at most ``ahead``.
        ahead: How many may be run together.

    Returns:
        Of each step its output, or a tuple of them.

    Raises:
        InvalidInput: The model is not captured, cannot be streamed, or its steps cannot be run together.
    """
    if session.executor is None:
        raise InvalidInput("The model is not captured yet.", "Pass example_inputs to convert before streaming.")
    with session.turn:
        executor, prepared, leaves = _steady(session, steps, ahead) or _bound(session, steps, ahead)
        refuse_change(session.changed(executor, leaves))
        if ahead == 1:
            rows = [session.advance(executor, prepared, leaves)[0]]
        else:
            refuse_ahead(executor.program)
            rows = _together(session, executor, leaves, prepared, len(steps), ahead)
    return [row[0] if len(row) == 1 else tuple(row) for row in rows]


def _bound(session: Session, steps: Sequence[Step], ahead: int) -> Begun:
    """Binds steps to what runs them."""
    assert session.executor is not None
    sequences = as_sequences(session.executor.program, steps)
    executor, call = session.prepared_for(sequences, {})
    session.steady = Steady.after(session.ready, steps, sequences, call.leaves)
    prepared = executor.ends.prepare(call.leaves, session.live.states)
    return executor, executor.single.of(prepared) if ahead == 1 else prepared, call.leaves


def _steady(session: Session, steps: Sequence[Step], ahead: int) -> Begun | None:
    """Does the same for steps like the last ones; None for others."""
    steady, executor, states = session.steady, session.executor, session.live.states
    if steady is None or executor is None or states is None:
        return None
    if not steady.serves(executor.program, session.standing, steps):
        return None
    refuse_transforms(session.model, steps[0], {})
    inputs, doubts = steady.laid_out(steps[0] if ahead == 1 else as_sequences(executor.program, steps))
    session.doubts.settle(doubts)
    return executor, Prepared(inputs, (), executor.ends.with_statistics(states), inputs[0].device), inputs


def _one_by_one(session: Session, outputs: list[Any]) -> Iterator[Any]:
    """Yields the outputs of steps that were run together, as long as they are what single steps would give.

    Args:
        session: Which has run them, and nothing since.
        outputs: Of every step; emptied.

    Raises:
        InvalidInput: They would not be any more.
    """
    live = session.live
    owed, same = Owed(len(outputs), len(outputs)), _same_circumstances(session)
    window = live.window
    live.owed = owed
    if window is not None:
        window.owed = owed
    try:
        for output in _emptied(outputs):
            if live.owed is not owed or (window is not None and window.closed) or not same():
                refuse_owed(owed, "The net was changed, called, reset, detached or switched")
            owed.left -= 1
            yield output
    finally:
        if live.owed is owed:
            live.owed = None  # the states are those after all steps that were taken


def _emptied(values: list[Any]) -> Iterator[Any]:
    values.reverse()
    while values:
        yield values.pop()


def _same_circumstances(session: Session) -> Callable[[], bool]:
    """Returns what tells whether all is as it is now that may not change between steps that were run together."""
    grad, modules = torch.is_grad_enabled(), list(session.model.modules())
    modes = [module.training for module in modules]
    parameters = [parameter for parameter in session.model.parameters() if not parameter.is_inference()]
    versions = [parameter._version for parameter in parameters]
    return lambda: (
        torch.is_grad_enabled() is grad
        and [module.training for module in modules] == modes
        and [parameter._version for parameter in parameters] == versions
    )


def _together(
    session: Session, executor: Executor, leaves: Sequence[Any], prepared: Prepared, steps: int, ahead: int
) -> list[list[Tensor]]:
    """Runs several steps from the prepared states; returns the outputs of each with their anchors."""
    live, program = session.live, executor.program
    count = count_states(program.carries)
    window = session.window_for(executor, executor.single.of(prepared), leaves)
    flags = live.flags_of(prepared.initial)
    run = Together(executor, prepared, window, steps, ahead)
    found = []
    try:
        while run.done < steps:
            begin, states = run.done, run.loop.states
            rows = run.piece()
            if window is not None:
                given = [executor.single.of(prepared, begin + time, states) for time in range(len(rows))]
                for time, each in enumerate(given):
                    window.take(each, [], len(rows) - 1 - time)
                for time, (each, place) in enumerate(zip(given, window.places(len(rows)), strict=True)):
                    learns, after = executor.flow.over(each.inputs, each.invariants, flags, 1)
                    flags = (*after[:count], *flags[count:])
                    ports = program.ports[: len(learns)]
                    rows[time] = with_anchors(rows[time], window.step_anchors(ports, rows[time], learns, place))
            found += rows
    except BaseException:
        # Some steps are recorded, and the states are still those before them.
        if window is not None:
            window.owed = Owed(steps, steps)
        live.close_window()
        raise
    executor.ends.move_statistics([carry.statistic for carry in program.carries], run.loop.states)
    live.go_on(run.loop.states, program.carries, False)
    live.flags = None if window is None else tuple(map(bool, flags[:count]))
    return found
