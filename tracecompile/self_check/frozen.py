"""Finds the line whose value was frozen: what the model does otherwise at another size than at the example's.

Both calls are traced. The same expression of the user's code makes the same nodes in both; where a number in one of
them is another, where an expression is reached in one of them only, or more often than the loop goes round, the
program of one call is wrong for the other.
"""

from __future__ import annotations

from collections.abc import Iterator
from dataclasses import dataclass
from typing import Any

import torch
from torch import fx, nn

from tracecompile.analysis.parts import parts_of
from tracecompile.capture.copying.copies import share_parameters
from tracecompile.capture.loops.loop_body import leaves_of
from tracecompile.capture.loops.places import place_key, visits_of
from tracecompile.capture.signature import leaf_names
from tracecompile.capture.tracing.tape import Tape
from tracecompile.capture.tracing.trace_errors import ModelFailure, TooManySteps
from tracecompile.capture.tracing.tracer import Recorder
from tracecompile.errors import ConversionError, SourceLine
from tracecompile.program import StepProgram
from tracecompile.self_check.inputs import Arguments
from tracecompile.self_check.results import same

VISITS = 4000
"""A call is traced no further than so many visits of one expression."""


@dataclass(frozen=True)
class Frozen:
    """What was frozen.

    Attributes:
        what: Half a sentence that goes on after "With 23 time steps".
        where: The user's line.
    """

    what: str
    where: SourceLine | None


def find_frozen(
    model: nn.Module, program: StepProgram, example: Arguments, other: Arguments, more_steps: int = 0
) -> Frozen | None:
    """Returns what a program took from its example as if it were the same in another call; None if nothing is found.

    Args:
        model: What was captured.
        program: What came of it.
        example: The call that it was captured from.
        other: A call of another size.
        more_steps: By how many steps that one is longer.
    """
    try:
        tapes = traced(model, example), traced(model, other)
    except (ModelFailure, TooManySteps):
        return None
    except ConversionError as refusal:
        return (
            Frozen(f"this line is another: {refusal.explanation}", refusal.where) if refusal.where is not None else None
        )
    written = operands_of(program)
    found = [*reached_in_one_only(*tapes), *operands_that_differ(*tapes), *reached_at_other_steps(*tapes, more_steps)]
    if not found:
        return None
    # What the program takes from the call itself is no mistake; an index of the loop is not written down at all.
    likely = [each for each in found if each.position < 0 or written.get((each.key, each.position)) is False]
    first = next(iter(likely or found))
    return Frozen(first.what, first.node.meta.get("where"))


@dataclass(frozen=True)
class Difference:
    """One expression that is something else in the second call; position -1 where it is no single operand."""

    node: fx.Node
    position: int
    what: str

    @property
    def key(self) -> Any:
        """Returns the expression."""
        return place_key(self.node)


def traced(model: nn.Module, call: Arguments) -> Tape:
    """Traces one call of a copy of the model."""
    copied = share_parameters(model)
    with torch.random.fork_rng():
        return Recorder(copied, VISITS).run(*call, leaf_names(copied, *call))


def operands_of(program: StepProgram) -> dict[tuple[Any, int], bool]:
    """Tells for each operand (expression, position) that the program has whether it is computed in each call."""
    return {
        (place_key(node), position): isinstance(operand, fx.Node)
        for part in parts_of(program)
        for node in part.graph.nodes
        for position, operand in enumerate(leaves_of((node.args, node.kwargs)))
    }


def reached_in_one_only(one: Tape, other: Tape) -> Iterator[Difference]:
    """Yields expressions that only one of two calls reaches, those of the other one first."""
    before, after = visits_of(one), visits_of(other)
    for mine, known in ((after, before), (before, after)):
        for key, nodes in mine.items():
            if key not in known:
                yield Difference(
                    nodes[0],
                    -1,
                    "the model takes another way than in the example: one of the two does not come by this line",
                )


def reached_at_other_steps(one: Tape, other: Tape, more_steps: int) -> Iterator[Difference]:
    """Yields expressions that are not visited once more, or k times more, for every further step."""
    before, after = visits_of(one), visits_of(other)
    for key, nodes in after.items():
        more = len(nodes) - len(before.get(key, nodes))
        if more and (not more_steps or more % more_steps or more // more_steps < 0):
            yield Difference(nodes[0], -1, "the model does not come by this line at the same steps as in the example")


def operands_that_differ(one: Tape, other: Tape) -> Iterator[Difference]:
    """Yields the operands that are another constant in the second call, or in a later step of it."""
    before, after = visits_of(one), visits_of(other)
    for key, nodes in after.items():
        if key not in before:
            continue
        ones = [list(leaves_of((node.args, node.kwargs))) for node in before[key]]
        for turn, node in enumerate(nodes):
            mine = list(leaves_of((node.args, node.kwargs)))
            own = ones[min(turn, len(ones) - 1)]
            if len(mine) != len(own):
                if not any(isinstance(leaf, fx.Node) for leaf in (*mine, *own)):
                    yield Difference(node, -1, "this line computes with other numbers than in the example")
                continue  # else a list of one value a step
            for position, operand in enumerate(mine):
                steady = turn < len(ones) or all(
                    len(row) == len(own) and same_operand((one, one), row[position], own[position]) for row in ones
                )
                if steady and not same_operand((one, other), own[position], operand):
                    words = f"this line computes with {named(operand)}, and in the example with {named(own[position])}"
                    yield Difference(node, position, words)


def same_operand(tapes: tuple[Tape, Tape], ours: Any, theirs: Any) -> bool:
    """Compares two operands that are no values of the call: numbers, names, and tensors that belong to no module."""
    if isinstance(ours, tuple) and ours[:1] == ("length",):
        return True
    if not isinstance(ours, fx.Node) and not isinstance(theirs, fx.Node):
        return type(ours) is type(theirs) and bool(ours == theirs)
    if not isinstance(ours, fx.Node) or not isinstance(theirs, fx.Node):
        return False
    if ours.op != "get_attr" or theirs.op != "get_attr":
        return True
    return same(*(tape.constants.get(str(node.target)) for tape, node in zip(tapes, (ours, theirs), strict=True)))


def named(operand: Any) -> str:
    """Names an operand."""
    if isinstance(operand, fx.Node):
        value = operand.meta.get("val")
        return f"a tensor of {tuple(value.shape)}" if isinstance(value, torch.Tensor) else repr(value)
    return repr(operand)
