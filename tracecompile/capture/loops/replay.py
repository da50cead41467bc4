"""Runs a rolled program on the example and compares it with what the model did."""

from __future__ import annotations

from typing import Any

import torch
from torch import fx

from tracecompile.capture.loops.loop_body import first_line
from tracecompile.capture.loops.loop_plan import LoopPlan
from tracecompile.capture.tracing.build import evaluate
from tracecompile.errors import UnrollableLoop
from tracecompile.program import StepProgram


def require_same_values(program: StepProgram, owner: LoopPlan) -> None:
    """Refuses a loop whose first step is not the rolled step from the initial states.

    The first step is written differently from the others (``mem = c if mem is None else ...``, a state that starts as a
    Python number). That is fine as long as it computes the same values.
    """
    loop = owner.loop
    given = [node.meta["val"] for node in loop.tape.inputs if node is not None]
    with torch.no_grad():
        sequences, invariants, states = evaluate(
            program.prologue.graph, given, owner.root, owner.leaves, remember=False, as_drawn=True
        )
        for step in range(loop.steps):
            now = [whole.select(item.dim, step) for whole, item in zip(sequences, program.inputs, strict=True)]
            outputs, states = evaluate(
                program.step.graph, [*now, *invariants, *states], owner.root, owner.leaves, remember=False
            )
            found = [(site, value) for (site, _, _), value in zip(owner.outputs, outputs, strict=True)]
            found += [
                (past.site, value) for past, value in zip(owner.carries, states, strict=True) if past.distance == 1
            ]
            for site, value in found:
                node = loop.at(site, step)
                if node is not None and not same(node.meta["val"], value):
                    raise different_start(node, owner)


def same(first: Any, second: Any) -> bool:
    """Compares two values bit for bit."""
    return isinstance(first, torch.Tensor) and isinstance(second, torch.Tensor) and torch.equal(first, second)


def different_start(node: fx.Node, owner: LoopPlan) -> UnrollableLoop:
    """Makes the refusal."""
    return UnrollableLoop(
        "The first time step computes something else than the later ones do from a zero state.",
        "Start every state as a tensor before the loop (torch.zeros) and treat all steps alike.",
        node.meta.get("where") or first_line(owner.loop),
    )
