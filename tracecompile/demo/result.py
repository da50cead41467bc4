"""What the demo measured, as text and as JSON."""

from __future__ import annotations

from dataclasses import asdict, dataclass
from typing import Any

from tracecompile.diagnostics.cost import Cost, format_bytes

BYTES_LIMIT = 2_000_000_000
"""Backpropagation through time is not run where it is predicted to hold more bytes than this."""


@dataclass(frozen=True)
class Training:
    """How one of the two trainings went.

    Attributes:
        accuracy: Share of the test digits recognised, 0 to 1.
        seconds_per_step: Median wall time of one optimiser step.
        bytes_for_backward: Bytes held between forward and backward, parameters and inputs not counted.
        losses: Training loss of every optimiser step.
        first_seconds: Of the first training step, with conversion and compilation.
    """

    accuracy: float
    seconds_per_step: float
    bytes_for_backward: int
    losses: list[float]
    first_seconds: float


@dataclass(frozen=True)
class Length:
    """One training step at one sequence length.

    Attributes:
        steps: Number of time steps.
        converted: What the converted network needs.
        bptt: What backpropagation through time needs; None where it was not run.
        predicted: Bytes of backpropagation through time, measured or, where it was not run, predicted.
    """

    steps: int
    converted: Cost
    bptt: Cost | None
    predicted: int


@dataclass(frozen=True)
class DemoResult:
    """Everything the demo measured; printing it gives the summary."""

    steps: int
    bptt: Training
    converted: Training
    lengths: list[Length]
    picture: str
    backend: str

    def to_dict(self) -> dict[str, Any]:
        """Returns the result as plain JSON values."""
        return asdict(self)

    @property
    def first_step(self) -> str:
        """In words: what the converted network takes once."""
        how = "conversion" if self.backend == "eager" else "conversion and compilation"
        return f"once, {how}: {self.converted.first_seconds:.1f} s, not in these times"

    def __str__(self) -> str:
        title = f"digits, {self.steps} time steps"
        lines = [f"{title:<32}{'accuracy':>10}{'per step':>12}{'for backward':>15}"]
        for name, run in (("backpropagation through time", self.bptt), ("converted", self.converted)):
            held = format_bytes(run.bytes_for_backward)
            lines.append(f"{name:<32}{run.accuracy:>10.1%}{run.seconds_per_step * 1e3:>9.0f} ms{held:>15}")
        lines += [f"({self.first_step})", ""]
        lines += [f"{'one training step':<20}{'through time':>24}{'converted':>24}"]
        for row in self.lengths:
            through = _cost(row.bptt) if row.bptt else f"not run: {format_bytes(row.predicted)}"
            lines.append(f"{row.steps:>8,} time steps{through:>25}{_cost(row.converted):>24}")
        lines.append("(warm: not the first of its kind; beside the time, the bytes held for backward)")
        if any(row.bptt is None for row in self.lengths):
            lines.append(f"(not run: the predicted bytes exceed the demo's limit of {format_bytes(BYTES_LIMIT)})")
        return "\n".join([*lines, "", f"picture: {self.picture}"])


def _cost(cost: Cost) -> str:
    return f"{format_seconds(cost.seconds)} {format_bytes(cost.bytes):>10}"


def format_seconds(seconds: float) -> str:
    """Returns a time with a unit, like ``41 ms``."""
    return f"{seconds * 1e3:.0f} ms" if seconds < 1 else f"{seconds:.1f} s"
