"""A whole sequence under a rule that records: forward once, what its backward pass needs is in the record."""

from __future__ import annotations

import itertools
from collections.abc import Sequence
from typing import Any

import torch
from torch import Tensor

from tracecompile.rules.written import in_sequence
from tracecompile.runtime.backward.anchors import of_chosen, with_anchors
from tracecompile.runtime.bins import Bins, SequenceClock
from tracecompile.runtime.collector import Collector
from tracecompile.runtime.engine.choice import Choice, choose
from tracecompile.runtime.executes import Executes
from tracecompile.runtime.loop import Loop
from tracecompile.runtime.outside import unseen
from tracecompile.runtime.piece import pieces
from tracecompile.runtime.rerun import Prepared, Rerun, of_steps
from tracecompile.runtime.window import Window


def recorded(
    executor: Executes, leaves: Sequence[Any], prepared: Prepared, steps: int, bins: int, drawn: Sequence[Tensor]
) -> tuple[list[Any], Window, list[Tensor]]:
    """Runs a sequence that is to be trained; see ``Executor.sequence``."""
    program, whole = executor.program, prepared
    prepared = of_steps(program, whole)
    window = executor.open_window(SequenceClock(Bins.over(steps, bins)), prepared)
    collector = Collector(program, steps)
    rerun = Rerun(executor, leaves, prepared, window.statics, drawn)
    given = dict(zip((x.name for x in program.inputs), prepared.inputs, strict=True))
    if executor.looked_at:
        choice = Choice("eager", 1, "every step is looked at by itself")
    else:
        choice = choose(program, steps, given, executor.work)
    executor.choice = choice
    loop = window.loop
    assert loop is not None
    with torch.no_grad(), unseen():
        if choice.chunk == 1:
            inputs = [value.detach() for value in prepared.inputs]
            for outputs in executor.steps(loop, inputs, seen=False):
                collector.add(outputs)
            rerun.final = loop.states
        else:
            _in_pieces(executor, prepared, loop, collector, choice)
        collected, states = collector.results(), loop.states
        window.settle()
    if executor.rule.reruns:
        window.rerun = rerun
    axes = {x.name: (value, x.dim) for x, value in zip(program.inputs, prepared.inputs, strict=True)}
    flags = executor.flow.over(prepared.inputs, prepared.invariants, prepared.initial, steps)
    ports = [port if learns else None for port, learns in zip(program.ports, itertools.chain(*flags), strict=True)]
    anchors = window.sequence_anchors(ports, [*collector.latest, *states], axes)
    last = [state.detach() for state in states]
    results = with_anchors(collected, of_chosen(program, anchors[: len(collected)]))
    states = with_anchors(states, anchors[len(collected) :])
    again = rerun if program.epilogue_again else None
    return executor.ends.finish(results, states, whole.invariants, again, steps), window, last


def _in_pieces(executor: Executes, prepared: Prepared, loop: Loop, collector: Collector, choice: Choice) -> None:
    """Runs a recorded sequence in pieces of several steps."""
    program, engine = executor.program, executor.engine(choice)
    whole = {x.name: v.detach().movedim(x.dim, 0) for x, v in zip(program.inputs, prepared.inputs, strict=True)}
    with in_sequence([unit.step for unit in program.units if unit.step is not None]):
        for outputs in pieces(loop, engine, whole, choice.chunk):
            collector.add_chunk(outputs)
    engine.forget()
