"""The check: values, gradients, other sizes, chunks, memory, in this order."""

from __future__ import annotations

from dataclasses import dataclass, replace
from typing import Any

import torch

from tracecompile.capture.loops.lengths import TimeSource
from tracecompile.rules import rule_of
from tracecompile.runtime.session import Session
from tracecompile.self_check.generators import generators_kept
from tracecompile.self_check.gradients import require_same_gradients
from tracecompile.self_check.inputs import Arguments
from tracecompile.self_check.pair import BuildAgain, ModelRefuses, Pair, detached
from tracecompile.self_check.sizes import MOST_STEPS, Sizes, example_steps, shortened
from tracecompile.self_check.verdict import decisive, require_same

STEPS = 5
"""Steps of the example over which gradients are compared; values are over ``MOST_STEPS``."""
CALLS = 3
MOST_BINS = 10
"""With more bins than this their responses take too much memory for a check, which then asks only for a gradient."""


@dataclass(frozen=True)
class Checked:
    """What the comparison found out about a model.

    Attributes:
        notes: Sentences for the report: which sizes the model itself refuses.
        batch_axes: Axes of the first tensor argument along which both gave the same at another size.
    """

    notes: tuple[str, ...]
    batch_axes: frozenset[int]


def check_against_model(
    session: Session, build_again: BuildAgain, args: tuple[Any, ...], kwargs: dict[str, Any], memory: bool = True
) -> Checked:
    """Compares what has just been compiled with the model, on the example and at other sizes.

    Both run as copies, so that parameters, their hooks, buffers and random numbers stay as they are.

    Args:
        session: What runs the program, on the copy of the model that it was captured from.
        build_again: Builds it for another length.
        args, kwargs: The example.
        memory: Whether the memory at two lengths is compared as well.

    Returns:
        What was found out about the model.

    Raises:
        ConversionError: A value differs, a parameter is trained by the model and not by the module, or memory grows
            with the number of steps; names the line.
    """
    with torch.inference_mode(False), generators_kept():
        pair = Pair(session, build_again)
        example = detached(args, kwargs)
        sizes = Sizes(pair, example)
        if on_the_example(pair, example):
            sizes.rounded.append("the example")
        sizes.compare(memory)
    return Checked(sizes.notes(), frozenset(sizes.batch_axes))


def on_the_example(pair: Pair, example: Arguments) -> bool:
    """Compares values and gradients on the first steps of the example, and values over more of it.

    Returns:
        Whether values are the model's up to rounding.

    Raises:
        ConversionError: They are not the model's.
    """
    program, settings = pair.program, pair.settings
    rule = rule_of(settings)
    measured = rule.resolves_steps(settings)
    rounded = False
    if (
        program.kind == "sequence"
        and program.length is None
        and example_steps(TimeSource(*program.time), *example) > STEPS
    ):
        calls = [shortened(program, *example, MOST_STEPS)]
        run = decisive(pair, calls, learning=False)
        require_same(pair, run)
        rounded = bool(run.adding)
    calls = [shortened(program, *example, STEPS)] if program.kind == "sequence" else [example] * CALLS
    try:
        pair.run(calls, learning=False)
    except ModelRefuses:
        calls = [example]  # too few steps for the model itself
    steps = program.length or example_steps(TimeSource(*program.time), *calls[0]) or STEPS
    exact = measured and steps <= MOST_BINS
    run = decisive(pair, calls, settings=replace(settings, bins=steps) if exact else None)
    require_same(pair, run)
    bins = settings.bins if measured else 0
    require_same_gradients(pair, run, exact or rule.is_exact(bins, steps))
    return rounded or bool(run.adding)
