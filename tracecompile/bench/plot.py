"""The picture of the benchmark: for each network, time over inference, and memory by length."""

from __future__ import annotations

from collections.abc import Sequence
from pathlib import Path
from typing import Any

from tracecompile.bench.result import BenchResult, Row
from tracecompile.demo.data import MissingDependency

OURS, THROUGH_TIME, OTHERS, GREY = "#1f6f9f", "#c2452d", "#b8862d", "#6b7280"
COLOURS = {"inference": GREY, "inference-compiled": GREY} | dict.fromkeys(
    ("bptt", "hoisted", "bptt-compiled", "checkpoint", "checkpoint-compiled", "truncated"), THROUGH_TIME
)


def require_matplotlib() -> None:
    """Raises MissingDependency where matplotlib is not installed."""
    try:
        import matplotlib  # noqa: F401
    except ImportError as error:
        raise MissingDependency(
            "The picture needs matplotlib: pip install 'tracecompile[demo]', or leave it out with --no-picture."
        ) from error


def draw(result: BenchResult, path: Path) -> None:
    """Writes a PNG: a column for each network; above the time at its longest length, below the memory."""
    from matplotlib.backends.backend_agg import FigureCanvasAgg
    from matplotlib.figure import Figure

    networks = list(dict.fromkeys(row.network for row in result.rows))
    most = max(len(rows) for _, rows in result.tables())
    figure = Figure(figsize=(1.5 + 6.2 * len(networks), 1.5 + 0.55 * most), layout="constrained")
    FigureCanvasAgg(figure)
    panels = figure.subplots(2, len(networks), squeeze=False)
    for column, network in enumerate(networks):
        rows = [row for row in result.rows if row.network == network and not row.skipped]
        longest = max(row.steps for row in rows)
        _times(panels[0, column], result, [row for row in rows if row.steps == longest])
        _memory(panels[1, column], [row for row in rows if row.steps == longest])
    figure.suptitle("One training step, forward and backward, next to the model's own inference", fontsize=13)
    figure.savefig(path, dpi=130, format="png")


def _times(axes: Any, result: BenchResult, rows: Sequence[Row]) -> None:
    ratios = [(row, ratio) for row in rows if (ratio := result.ratio(row)) is not None]
    _bars(axes, [row for row, _ in ratios], [ratio for _, ratio in ratios], [f"{ratio:.2f}" for _, ratio in ratios])
    axes.axvline(1.0, color=GREY, lw=1, ls=":")
    axes.set_xlabel("time, in units of the model's inference")
    axes.set_title(f"{rows[0].title}\n{rows[0].steps:,} time steps", loc="left", fontsize=11)


def _memory(axes: Any, rows: Sequence[Row]) -> None:
    found = [(row, row.peak_bytes / 1e6) for row in rows if row.peak_bytes]
    _bars(axes, [row for row, _ in found], [size for _, size in found], [f"{size:,.0f}" for _, size in found])
    axes.set_xlabel("peak memory of a process, MB")


def _bars(axes: Any, rows: Sequence[Row], values: Sequence[float], labels: Sequence[str]) -> None:
    bars = axes.barh([row.name for row in rows], values, height=0.65, color=[_colour(row) for row in rows])
    axes.bar_label(bars, labels, padding=4, fontsize=9)
    axes.invert_yaxis()
    axes.margins(x=0.15)
    axes.spines[["top", "right"]].set_visible(False)
    axes.tick_params(axis="y", length=0)


def _colour(row: Row) -> str:
    if row.method.startswith(("spikingjelly", "snntorch", "braintrace")):
        return OTHERS
    return COLOURS.get(row.method, OURS)
