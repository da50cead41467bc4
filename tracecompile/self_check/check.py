"""The check: values, gradients, other sizes, chunks, memory, in this order."""

from __future__ import annotations

from dataclasses import dataclass, replace
from typing import TYPE_CHECKING, Any

import torch
from torch import nn

from tracecompile.capture.loops.lengths import TimeSource
from tracecompile.self_check.generators import generators_kept
from tracecompile.self_check.gradients import require_same_gradients
from tracecompile.self_check.inputs import Arguments
from tracecompile.self_check.pair import ModelRefuses, Pair, detached
from tracecompile.self_check.sizes import MOST_STEPS, Sizes, example_steps, shortened
from tracecompile.self_check.verdict import require_same

if TYPE_CHECKING:
    from tracecompile.runtime.module import TracedModule

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


def check_against_model(net: TracedModule, model: nn.Module, args: tuple[Any, ...], kwargs: dict[str, Any]) -> Checked:
    """Compares a module that has just been converted with the model, on the example and at other sizes.

    Both run as copies, so that parameters, their hooks, buffers and random numbers stay as they are.

    Args:
        net: The module.
        model: What it was captured from.
        args, kwargs: The example.

    Returns:
        What was found out about the model.

    Raises:
        ConversionError: A value differs, a parameter is trained by the model and not by the module, or memory grows
            with the number of steps; names the line.
    """
    with torch.inference_mode(False), generators_kept():
        pair = Pair(net, model)
        example = detached(args, kwargs)
        on_the_example(net, pair, example)
        sizes = Sizes(pair, example)
        # What grows with the number of steps does so in the program of any, and each costs two more to compare.
        known = any(one.program.length_bound and one.modes == net._ready.modes for one, _ in net._programs)
        sizes.compare(memory=not known)
    return Checked(sizes.notes(), frozenset(sizes.batch_axes))


def on_the_example(net: TracedModule, pair: Pair, example: Arguments) -> None:
    """Compares values and gradients on the first steps of the example, and values over more of it."""
    program, settings = pair.program, net._settings
    measured = settings.rule == "measured" and settings.decay is None
    if (
        program.kind == "sequence"
        and program.length is None
        and example_steps(TimeSource(*program.time), *example) > STEPS
    ):
        calls = [shortened(program, *example, MOST_STEPS)]
        require_same(pair, pair.run(calls, learning=False))
    calls = [shortened(program, *example, STEPS)] if program.kind == "sequence" else [example] * CALLS
    try:
        pair.run(calls, learning=False)
    except ModelRefuses:
        calls = [example]  # too few steps for the model itself
    steps = program.length or example_steps(TimeSource(*program.time), *calls[0]) or STEPS
    exact = measured and steps <= MOST_BINS
    run = pair.run(calls, settings=replace(settings, bins=steps) if exact else None)
    require_same(pair, run)
    bins = settings.bins if measured else 0
    require_same_gradients(net, run, exact or bins >= steps or settings.rule == "bptt")
