"""Times the rows of one case, interleaved, and compares their gradients."""

from __future__ import annotations

import gc
import time
from collections.abc import Callable, Mapping, Sequence
from typing import Any

import torch
from torch import Tensor

from tracecompile.bench.case import Case
from tracecompile.bench.methods import Method
from tracecompile.bench.result import Row
from tracecompile.bench.running import Run, Skipped
from tracecompile.diagnostics.cost import format_bytes
from tracecompile.diagnostics.gradient_table import NO_GRADIENT, compare_tensors
from tracecompile.diagnostics.held import count_held

PROBED_STEPS = (8, 16)
"""Lengths from which the size of a graph over time is extrapolated."""

Gradients = Mapping[str, Tensor | None]
Progress = Callable[[str], Any]


class Trial:
    """One row while it is being measured."""

    def __init__(self, method: Method, row: Row) -> None:
        self.method, self.row = method, row
        self.run: Run | None = None


def measure_case(
    case: Case, name: str, methods: Sequence[Method], repeats: int, limit: int, progress: Progress
) -> list[Row]:
    """Measures time and gradients of all rows of one case.

    Each row runs once to warm up; then all of them run in turn, ``repeats`` times, so that whatever slows the machine
    down slows all of them down.

    Args:
        case: What is run.
        name: Of the network, for the rows.
        methods: The rows.
        repeats: Timed runs of each.
        limit: A row whose graph is predicted to take more bytes than this is left out.
        progress: Takes a line of text now and then.
    """
    trials = [Trial(method, Row(name, case.title, case.steps, method.key, method.title)) for method in methods]
    gradients: dict[str, Gradients] = {}
    for trial in trials:
        progress(f"{case.title}, {case.steps} steps: {trial.method.title}")
        try:
            start = time.perf_counter()
            run = trial.method.make(case)
            making = time.perf_counter() - start
            _refuse_large(trial.method, run, case, limit)
            trial.row.first_seconds = making + timed(run, case.device)
        except Skipped as reason:
            trial.row.skipped = str(reason)
            continue
        trial.run, trial.row.note = run, run.note
        gradients[trial.method.key] = {
            parameter: None if g is None else g.clone() for parameter, g in run.gradients().items()
        }
    _compare(trials, gradients)
    for round_number in range(repeats):
        progress(f"{case.title}, {case.steps} steps: round {round_number + 1} of {repeats}")
        for trial in trials:
            if trial.run is not None:
                trial.row.times.append(timed(trial.run, case.device))
    return [trial.row for trial in trials]


def timed(run: Run, device: torch.device) -> float:
    """Runs once and returns the seconds that it took."""
    run.prepare()
    gc.collect()
    _wait_for(device)
    start = time.perf_counter()
    run.step()
    _wait_for(device)
    return time.perf_counter() - start


def _refuse_large(method: Method, run: Run, case: Case, limit: int) -> None:
    """Skips a row whose graph over time would not fit, instead of letting the system end the process."""
    if run.grows is None or case.steps <= 4 * PROBED_STEPS[1]:
        return
    held = []
    for steps in PROBED_STEPS:
        short = case.of_length(steps)
        if short is None:
            return
        probe = method.make(short)
        module, loss = probe.prepare(), probe.grows
        assert loss is not None
        held.append(count_held(lambda module=module, loss=loss: loss(module)))  # type: ignore[misc]
    per_step = (held[1] - held[0]) / (PROBED_STEPS[1] - PROBED_STEPS[0])
    predicted = held[1] + per_step * (case.steps - PROBED_STEPS[1])
    if predicted > limit:
        raise Skipped(f"it would hold {format_bytes(predicted)}, more than the limit of {format_bytes(limit)}")


def _compare(trials: Sequence[Trial], gradients: Mapping[str, Gradients]) -> None:
    """Sets the lowest cosine of every row to backpropagation through time, or to what is equal to it and fits."""
    exact = [trial.method for trial in trials if trial.method.exact and trial.run is not None]
    if not exact:
        return
    reference = gradients[exact[0].key]
    for trial in trials:
        if trial.run is not None and trial.run.trains:
            trial.row.cosine, trial.row.worst = lowest_cosine(gradients[trial.method.key], reference)
            trial.row.norm_ratio = first_norm_ratio(gradients[trial.method.key], reference)
            trial.row.compared_with = exact[0].key


def lowest_cosine(measured: Gradients, reference: Gradients) -> tuple[float | None, str]:
    """Returns the lowest cosine over all parameters that have a gradient, and whose it is; None where none has."""
    rows = [compare_tensors(name, measured.get(name), expected) for name, expected in reference.items()]
    rows = [row for row in rows if row.status != NO_GRADIENT]
    if not rows:
        return None, ""
    worst = min(rows, key=lambda row: row.rank)
    return worst.cosine, worst.parameter


def first_norm_ratio(measured: Gradients, reference: Gradients) -> float | None:
    """Returns the ratio of the norms of the first gradient that is a matrix or more, or of the first one at all."""
    known = [(name, gradient) for name, gradient in reference.items() if gradient is not None]
    first = next((name for name, gradient in known if gradient.ndim > 1), known[0][0] if known else "")
    return compare_tensors(first, measured.get(first), reference.get(first)).norm_ratio


def _wait_for(device: torch.device) -> None:
    if device.type == "cuda":
        torch.cuda.synchronize(device)
