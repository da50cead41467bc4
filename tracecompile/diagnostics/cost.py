"""What one training step costs."""

from __future__ import annotations

import time
from collections.abc import Callable
from dataclasses import dataclass
from typing import Any

import torch
from torch import nn

from tracecompile.diagnostics.fidelity import call_or_loop
from tracecompile.diagnostics.held import count_held

REPETITIONS = 3


@dataclass(frozen=True)
class Cost:
    """What one training step (forward and backward) needs.

    Attributes:
        bytes: Bytes that are held between forward and backward, parameters and inputs not counted.
        seconds: Wall time of both.
    """

    bytes: int
    seconds: float


def measure_step(model: nn.Module, inputs: Any, loss_fn: Callable[[Any], torch.Tensor]) -> Cost:
    """Runs forward and backward once, without an update, and then forward once more to count what it leaves behind.

    The gradients of the model's parameters are None afterwards.

    Args:
        model: What to run.
        inputs: A tuple of arguments, or a list of them, one call each.
        loss_fn: Maps the result (a list of results) to a scalar.
    """
    seconds = time_step(model, inputs, loss_fn)
    return Cost(count_held(lambda: loss_fn(call_or_loop(model, inputs))), seconds)


def time_step(model: nn.Module, inputs: Any, loss_fn: Callable[[Any], torch.Tensor]) -> float:
    """Runs forward and backward once, without an update, as ``measure_step`` does; returns the seconds."""
    model.zero_grad(set_to_none=True)
    start = time.perf_counter()
    loss_fn(call_or_loop(model, inputs)).backward()
    seconds = time.perf_counter() - start
    model.zero_grad(set_to_none=True)
    return seconds


def cheapest(measure: Callable[[], Cost]) -> Cost:
    """Returns the fastest of a few measurements: what is slower was disturbed."""
    return min((measure() for _ in range(REPETITIONS)), key=lambda cost: cost.seconds)


def format_bytes(count: float) -> str:
    """Returns a number of bytes with a unit, like ``1.3 MB`` (powers of 1000)."""
    for unit in ("B", "kB", "MB"):
        if count < 999.95:
            return f"{count:.0f} {unit}" if unit == "B" else f"{count:.1f} {unit}"
        count /= 1000
    return f"{count:.1f} GB"
