"""Sequences that go on from the states that the last one left.

A library's layer keeps its state from one sequence to the next until it is reset. A converted module does the same: the
loop starts from what the last call left, where there was one. That this is what the model does is checked by value.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import replace
from typing import Any

import torch
from torch import fx, nn
from torch.utils import _pytree as pytree

from tracecompile.analysis.prologue import without_side_effects
from tracecompile.capture.copying.fresh_start import library_of
from tracecompile.capture.loops.loop_plan import LoopPlan
from tracecompile.capture.steps.leftovers import attributes_read
from tracecompile.capture.tracing.build import evaluate
from tracecompile.capture.tracing.draws import drawing_again
from tracecompile.capture.tracing.tape import Tape
from tracecompile.program import StepProgram

NOTE = (
    "The states go on from one sequence to the next until reset(), as the library's do; no gradient flows from a "
    "sequence into the one before."
)


def left_for_the_next(tape: Tape, model: nn.Module, own: bool = False) -> tuple[str, ...]:
    """Returns the states that a second call reads and the first one left; none if others than libraries' are.

    Args:
        own: Take the states of any other module as well.
    """
    written = set(tape.states_written())
    if tape.again is None or attributes_read(tape) & written:
        return ()
    names = tuple(sorted(attributes_read(tape.again) & written))
    owners = [model.get_submodule(name.partition("[")[0].rpartition(".")[0]) for name in names]
    return names if own or all(library_of(owner) is not None for owner in owners) else ()


def going_on(program: StepProgram, plan: LoopPlan, names: Sequence[str]) -> StepProgram | None:
    """Marks the carries that hold these states; None where the second call is not the loop gone on from them."""
    tape = plan.tape
    assert tape.again is not None
    places = _places(plan, names)
    if not_carried(plan, names):
        return None
    # Of a part of a model the second call may have other inputs: what comes before it has states of its own.
    given, given_next = ([node.meta["val"] for node in each.inputs if node is not None] for each in (tape, tape.again))
    # What the model left, which a program that takes step by step what it does at once has up to rounding alone.
    read = {str(node.target): node.meta["val"] for node in tape.again.graph.nodes if node.op == "get_attr"}
    begun = {k: read[place] for k, place in enumerate(places) if place}
    with torch.no_grad():
        with drawing_again(tape.generators):
            _, states = _run(program, given, plan.loop.steps, {})
        with drawing_again(tape.again.generators):
            results, _ = _run(program, given_next, plan.loop.steps, begun)
    expected = pytree.tree_leaves(tape.again.results()[0])
    ended = [(states[k], tape.attributes[place]) for k, place in enumerate(places) if place]
    if not all(_same(one, other) for one, other in (*ended, *zip(results, expected, strict=False))):
        return None
    carries = tuple(
        replace(carry, kept=place != "", place=place) for carry, place in zip(program.carries, places, strict=True)
    )
    return program.evolve(carries=carries, notes=(*program.notes, NOTE))


def not_carried(plan: LoopPlan, names: Sequence[str]) -> list[str]:
    """Returns those states that no step hands to the next one: a mask drawn once and kept, for example."""
    places, left = _places(plan, names), {plan.tape.attributes[name]: name for name in names}
    return [name for name in left.values() if name not in places]


def _places(plan: LoopPlan, names: Sequence[str]) -> list[str]:
    """Returns for every carry the state that it is, empty for none."""
    left = {plan.tape.attributes[name]: name for name in names}
    return [left.get(plan.loop.template(past.site), "") if past.distance == 1 else "" for past in plan.carries]


def _run(program: StepProgram, given: list[Any], steps: int, left: dict[int, Any]) -> tuple[list[Any], list[Any]]:
    """Runs a program from the given states; returns the leaves of its result, and its last states."""

    def call(graph: fx.GraphModule, values: Sequence[Any]) -> Any:
        return evaluate(graph.graph, values, program.root, program.leaves, remember=False)

    sequences, invariants, states = call(without_side_effects(program), given)
    states = [left.get(k, state) for k, state in enumerate(states)]
    kept: list[list[Any]] = [[] for _ in program.outputs]
    for step in range(steps):
        now = [whole.select(item.dim, step) for whole, item in zip(sequences, program.inputs, strict=True)]
        outputs, states = call(program.step, [*now, *invariants, *states])
        for values, value in zip(kept, outputs, strict=True):
            values.append(value)
    collected = []
    for values, output in zip(kept, program.outputs, strict=True):
        total = values[-1]
        if output.collect == "sum":
            chosen = range(steps) if output.chosen is None else output.chosen.of(steps)
            total = sum((values[step] for step in chosen[1:]), start=values[chosen[0]])
        collected.append(torch.stack(values) if output.collect == "stack" else total)
    return list(call(program.epilogue, [*collected, *states, *invariants])), list(states)


def _same(found: Any, expected: Any) -> bool:
    wanted = expected.meta["val"] if isinstance(expected, fx.Node) else expected
    if isinstance(found, torch.Tensor) and isinstance(wanted, torch.Tensor):
        return torch.equal(found, wanted)
    return type(found) is type(wanted) and bool(found == wanted)
