"""Runs a rolled program on the example and compares it with what the model did."""

from __future__ import annotations

from collections.abc import Iterator
from typing import Any

import torch
from torch import fx

from tracecompile.capture.loops.loop_body import Loop, body_changes, first_line
from tracecompile.capture.loops.loop_plan import LoopPlan
from tracecompile.capture.loops.places import written_place
from tracecompile.capture.tracing.build import evaluate, is_dropout, is_random
from tracecompile.errors import UnrollableLoop
from tracecompile.operations.cone import cone
from tracecompile.program import StepProgram


def require_same_values(program: StepProgram, owner: LoopPlan) -> None:
    """Refuses a loop whose first step is not the rolled step from the initial states.

    The first step is written differently from the others (``mem = c if mem is None else ...``, a state that starts as a
    Python number). That is fine as long as it computes the same values.
    """
    loop = owner.loop
    if any(is_random(node) or is_dropout(node, owner.root) for node in program.step.graph.nodes):
        return  # no step draws what another one drew
    given = [node.meta["val"] for node in loop.tape.inputs if node is not None]
    # With autograd, as the model ran: torch may round otherwise where nothing is to be differentiated.
    sequences, invariants, states = evaluate(
        program.prologue.graph, given, owner.root, owner.leaves, remember=False, as_drawn=True
    )
    for step in range(loop.steps):
        now = [whole.select(item.dim, step) for whole, item in zip(sequences, program.inputs, strict=True)]
        for position, stream in enumerate(owner.inputs):
            # Where the model took it: a product may round by where its operand begins in memory.
            if same(stream.taken(step), now[position]):
                now[position] = stream.taken(step)
        outputs, states = evaluate(
            program.step.graph, [*now, *invariants, *states], owner.root, owner.leaves, remember=False
        )
        found = [(site, value) for (site, _, _), value in zip(owner.outputs, outputs, strict=True)]
        found += [(past.site, value) for past, value in zip(owner.carries, states, strict=True) if past.distance == 1]
        for site, value in found:
            node = loop.at(site, step)
            if node is not None and not same(node.meta["val"], value):
                raise different_start(node, owner)


def same(first: Any, second: Any) -> bool:
    """Compares two values bit for bit."""
    return isinstance(first, torch.Tensor) and isinstance(second, torch.Tensor) and torch.equal(first, second)


def different_start(node: fx.Node, owner: LoopPlan) -> UnrollableLoop:
    """Makes the refusal, at the line that is there for the first step alone if there is one."""
    alone = next(_of_first_step_alone(node, owner.loop), None)
    if alone is not None:
        return body_changes(alone, "runs in the first time step only")
    return UnrollableLoop(
        "The first time step computes something else than the later ones do from a zero state.",
        "Start every state as a tensor before the loop (torch.zeros) and treat all steps alike.",
        node.meta.get("where") or first_line(owner.loop),
    )


def _of_first_step_alone(node: fx.Node, loop: Loop) -> Iterator[fx.Node]:
    """Yields what a node is computed from that stands between the lines of the loop, and that no later step visits."""
    spans: dict[Any, tuple[int, int]] = {}
    for site in loop.body:
        found = _line(loop.template(site))
        if found is not None:
            function, line = found
            first, last = spans.get(function, (line, line))
            spans[function] = min(first, line), max(last, line)
    needed = cone([node])
    for each in loop.tape.graph.nodes:
        found = _line(each) if each in needed and each not in loop.when and each.op.startswith("call_") else None
        if found is not None and found[0] in spans:
            first, last = spans[found[0]]
            if first < found[1] < last:
                yield each


def _line(node: fx.Node) -> tuple[Any, int] | None:
    """Returns the function that a node stands in, and its line."""
    place, where = written_place(node), node.meta.get("where")
    return None if place is None or where is None else (place.frames[-1][:2], where.line)
