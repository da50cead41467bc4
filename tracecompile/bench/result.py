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
HEADER = ("", "time", "of inference", "peak memory", "above 64 steps", "lowest cosine", "first step")


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
        start_bytes: Peak memory of that process after a training step of 64 time steps; None where the
            sequence is no longer, or its length is fixed.
        cosine: Lowest cosine to backpropagation through time over all parameters; None where there is none,
            or where none could be compared.
        worst: The parameter that has it.
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
    start_bytes: int | None = None
    cosine: float | None = None
    worst: str = ""
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

    def ratio(self, row: Row) -> float | None:
        """Returns the median time of a row over that of inference with the same network and length."""
        mine, (baseline,) = (
            row.seconds,
            (
                other.seconds
                for other in self.rows
                if (other.network, other.steps, other.method) == (row.network, row.steps, BASELINE)
            ),
        )
        return None if mine is None or not baseline else mine / baseline

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
                "first_seconds": row.first_seconds,
                "peak_bytes": row.peak_bytes,
                "start_bytes": row.start_bytes,
                "lowest_cosine": row.cosine,
                "worst_parameter": row.worst or None,
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
            table = text_table(HEADER, [self._cells(row) for row in rows])
            sections.append("\n".join(part for part in (title, table, below) if part))
        machine = ", ".join(f"{name} {value}" for name, value in self.environment.items())
        written = "\n".join(f"{kind}: {path}" for kind, path in self.files.items())
        return "\n\n".join(part for part in (*sections, FOOTNOTE, machine, written) if part)

    def _cells(self, row: Row) -> list[str]:
        seconds, ratio = row.seconds, self.ratio(row)
        steps = None if row.peak_bytes is None or row.start_bytes is None else row.peak_bytes - row.start_bytes
        return [
            row.name,
            "" if seconds is None else f"{seconds * 1e3:,.1f} ms",
            "" if ratio is None else f"{ratio:.2f}",
            "" if row.peak_bytes is None else format_bytes(row.peak_bytes),
            "" if steps is None else format_bytes(steps),
            "" if row.cosine is None else f"{row.cosine:.4f}",
            "" if row.first_seconds is None else f"{row.first_seconds:,.1f} s",
        ]


FOOTNOTE = """time: of a training step, forward and backward without an update; median of
    interleaved runs
peak memory: of a fresh process
above 64 steps: what it took beyond a training step of 64 time steps and the
    input
first step: once, with conversion and compilation"""
