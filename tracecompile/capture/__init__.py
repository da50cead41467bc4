"""The front end: from the user's module to a StepProgram."""

from __future__ import annotations

from typing import Any

import torch
from torch import nn

from tracecompile.capture.loops.fixed import capture_fixed_loop, capture_kept_loop
from tracecompile.capture.loops.lengths import TimeSource
from tracecompile.capture.loops.sequence import capture_at_length, capture_sequence
from tracecompile.capture.numbers import pinned_numbers
from tracecompile.capture.steps.step import capture_call, capture_step
from tracecompile.errors import NoSpikingLayer
from tracecompile.program import StepProgram

__all__ = ["capture_program"]


def capture_program(
    model: nn.Module, args: tuple[Any, ...], kwargs: dict[str, Any], source: TimeSource | None = None
) -> StepProgram:
    """Captures a model as one time step with what runs before and after it.

    The model is not modified: copies of it run, which share its Parameters.

    Args:
        model: A loop over time, or one step of it.
        args, kwargs: An example call, any length and batch size.
        source: What says how many steps there are, to capture the loop as it is at the length of this call alone.

    Raises:
        ConversionError: The model is not something that can be converted; the error names the line.
    """
    with torch.random.fork_rng():
        program = _captured(model, args, kwargs) if source is None else capture_at_length(model, args, kwargs, source)
        if program is not None:
            program = program.evolve(pinned=pinned_numbers(program, _captured, model, args, kwargs))
    if program is None:
        raise NoSpikingLayer(
            "The model has no state that lives from one time step to the next.",
            "Pass a module with a loop over time, or one that keeps or returns its membrane potentials.",
        )
    return program


def _captured(model: nn.Module, args: tuple[Any, ...], kwargs: dict[str, Any]) -> StepProgram | None:
    return (
        capture_sequence(model, args, kwargs)
        or capture_kept_loop(model, args, kwargs)
        or capture_step(model, args, kwargs)
        or capture_fixed_loop(model, args, kwargs)
        or capture_call(model, args, kwargs)
    )
