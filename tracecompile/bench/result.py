"""What the benchmark measured, as text and as JSON."""

from __future__ import annotations

import statistics
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass, field
from typing import Any

from tracecompile.diagnostics.cost import format_bytes
from tracecompile.tables import text_lines, text_table

BASELINE = "inference"
"""The row that the ratios refer to."""
COMPILED_BASELINE = "inference-compiled"
"""The row that a second ratio refers to, where it was measured."""
TIMES = ("", "time", "of inference", "of compiled", "first step")
OTHERS = ("", "peak memory", "returned at once", "above 64 steps", "lowest cosine", "first norm")


@dataclass
class Row:
    """One way of training one network at one length.

    Attributes:
        network: Name of the network.
        title: Name and size of the network.
        steps: Time steps.
        method: Key of the method.
        name: Name of the method.
        times: Seconds of each timed run.
        first_seconds: Seconds until the first training step was done, with conversion and compilation; None if skipped.
        peak_bytes: Peak memory of a fresh process; None where it was not measured.
        returned_bytes: The same of a process whose allocator gives freed memory back at once; None where it was not
            measured.
        start_bytes: Peak memory of that process after a training step of 64 time steps; None where the
            sequence is no longer, or its length is fixed.
        cosine: Lowest cosine to backpropagation through time over all parameters; None where there is none,
            or where none could be compared.
        worst: The parameter that has it.
        norm_ratio: Norm of the gradient of the first layer's weights over that of backpropagation through time.
        compared_with: Key of the row that the cosine refers to; "" where there is none.
        note: A remark.
        skipped: Why nothing was measured; "" where it was.
    """

    network: str
    title: str
    steps: int
    method: str
    name: str
    times: list[float] = field(default_factory=list)
    first_seconds: float | None = None
    peak_bytes: int | None = None
    returned_bytes: int | None = None
    start_bytes: int | None = None
    cosine: float | None = None
    worst: str = ""
    norm_ratio: float | None = None
    compared_with: str = ""
    note: str = ""
    skipped: str = ""

    @property
    def seconds(self) -> float | None:
        """Median of the timed runs."""
        return statistics.median(self.times) if self.times else None


@dataclass(frozen=True)
class BenchResult:
    """All rows; printing it gives one table for each network and length.

    Attributes:
        rows: In the order of the tables.
        environment: What it ran on.
        settings: What was asked for.
        files: What was written, by kind.
    """

    rows: Sequence[Row]
    environment: Mapping[str, Any]
    settings: Mapping[str, Any]
    files: Mapping[str, str] = field(default_factory=dict)

    def tables(self) -> Iterator[tuple[tuple[str, int], list[Row]]]:
        """Yields network and length with their rows."""
        for key in dict.fromkeys((row.network, row.steps) for row in self.rows):
            yield key, [row for row in self.rows if (row.network, row.steps) == key]

    def ratio(self, row: Row, baseline: str = BASELINE) -> float | None:
        """Returns the median time of a row over that of a baseline with the same network and length, if it has one."""
        wanted = (row.network, row.steps, baseline)
        found = (other.seconds for other in self.rows if (other.network, other.steps, other.method) == wanted)
        seconds = next(found, None)
        return None if row.seconds is None or not seconds else row.seconds / seconds

    def to_dict(self) -> dict[str, Any]:
        """Returns the result as plain JSON values; what was not measured is None."""
        rows = [
            {
                "network": row.network,
                "title": row.title,
                "steps": row.steps,
                "method": row.method,
                "name": row.name,
                "seconds": row.seconds,
                "times": list(row.times),
                "ratio_to_inference": self.ratio(row),
                "ratio_to_compiled_inference": self.ratio(row, COMPILED_BASELINE),
                "first_seconds": row.first_seconds,
                "peak_bytes": row.peak_bytes,
                "returned_bytes": row.returned_bytes,
                "start_bytes": row.start_bytes,
                "lowest_cosine": row.cosine,
                "worst_parameter": row.worst or None,
                "first_norm_ratio": row.norm_ratio,
                "compared_with": row.compared_with or None,
                "note": row.note,
                "skipped": row.skipped or None,
            }
            for row in self.rows
        ]
        return {"rows": rows, "environment": dict(self.environment), "settings": dict(self.settings)} | {
            "files": dict(self.files)
        }

    def __str__(self) -> str:
        sections = []
        for (_, steps), rows in self.tables():
            title = f"{rows[0].title}, {steps:,} time steps"
            remarks = [(row.name, f"skipped: {row.skipped}" if row.skipped else row.note) for row in rows]
            below = text_lines([f"{name}: {remark}" for name, remark in remarks if remark])
            times = text_table(TIMES, [self._times(row) for row in rows])
            others = text_table(OTHERS, [_others(row) for row in rows])
            sections += ["\n".join((title, times)), "\n".join(part for part in (others, below) if part)]
        machine = ", ".join(f"{name} {value}" for name, value in self.environment.items())
        written = "\n".join(f"{kind}: {path}" for kind, path in self.files.items())
        return "\n\n".join(part for part in (*sections, FOOTNOTE, machine, written) if part)

    def _times(self, row: Row) -> list[str]:
        ratios = [self.ratio(row, baseline) for baseline in (BASELINE, COMPILED_BASELINE)]
        return [
            row.name,
            "" if row.seconds is None else f"{row.seconds * 1e3:,.1f} ms",
            *("" if ratio is None else f"{ratio:.2f}" for ratio in ratios),
            "" if row.first_seconds is None else f"{row.first_seconds:,.1f} s",
        ]


def _others(row: Row) -> list[str]:
    steps = None if row.peak_bytes is None or row.start_bytes is None else row.peak_bytes - row.start_bytes
    sizes = (row.peak_bytes, row.returned_bytes, steps)
    return [
        row.name,
        *("" if size is None else format_bytes(size) for size in sizes),
        "" if row.cosine is None else f"{row.cosine:.4f}",
        "" if row.norm_ratio is None else f"{row.norm_ratio:.3f}",
    ]


FOOTNOTE = """time: of a training step, forward and backward without an update; median of
    interleaved runs
of inference, of compiled: times that of the model's inference, as it is and
    compiled
peak memory: of a fresh process
returned at once: the same, with an allocator that keeps nothing that was freed
above 64 steps: what it took beyond a training step of 64 time steps and the
    input
first norm: of the first layer's gradient, over that of backpropagation through
    time
first step: once, with conversion and compilation"""
