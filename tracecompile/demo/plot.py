"""The picture of the demo: training, accuracy, memory against sequence length."""

from __future__ import annotations

from pathlib import Path
from typing import Any

from tracecompile.demo.data import MissingDependency
from tracecompile.demo.result import DemoResult, format_seconds
from tracecompile.diagnostics.cost import format_bytes
from tracecompile.files import written_whole

THROUGH_TIME, CONVERTED, GREY = "#c2452d", "#1f6f9f", "#6b7280"
NAMES = ("backpropagation through time", "converted")


def require_matplotlib() -> None:
    """Raises MissingDependency where matplotlib is not installed."""
    try:
        import matplotlib  # noqa: F401
    except ImportError as error:
        raise MissingDependency("The demo needs matplotlib: pip install 'tracecompile[demo]'") from error


def draw(result: DemoResult, path: Path) -> None:
    """Writes a PNG with four panels: loss, accuracy, bytes held for backward and time, the last two by length."""
    from matplotlib.backends.backend_agg import FigureCanvasAgg
    from matplotlib.figure import Figure

    figure = Figure(figsize=(12.5, 7.6), layout="constrained")
    FigureCanvasAgg(figure)
    panels = figure.subplots(2, 2, width_ratios=(1.6, 1.0))
    _memory(panels[0, 0], result)
    _accuracy(panels[0, 1], result)
    _loss(panels[1, 0], result)
    _time(panels[1, 1], result)
    for axes in panels.flat:
        axes.spines[["top", "right"]].set_visible(False)
        axes.title.set_fontsize(11.5)
        axes.title.set_horizontalalignment("left")
        axes.title.set_position((0.0, 1.0))
    figure.suptitle("The same recurrent spiking network, trained twice on handwritten digits", fontsize=14)
    with written_whole(path) as (part,):
        figure.savefig(part, dpi=150, format="png")


def _memory(axes: Any, result: DemoResult) -> None:
    steps = [row.steps for row in result.lengths]
    held = [row.converted.bytes for row in result.lengths]
    run = [(row.steps, row.bptt.bytes) for row in result.lengths if row.bptt]
    axes.plot(*zip(*run, strict=True), "o-", color=THROUGH_TIME, label=NAMES[0])
    axes.plot(steps, held, "o-", color=CONVERTED, label=NAMES[1])
    left_out = [(row.steps, row.predicted) for row in result.lengths if row.bptt is None]
    if left_out:
        style = {"mfc": "none", "color": THROUGH_TIME, "label": "predicted, not run"}
        axes.plot(*zip(run[-1], *left_out, strict=True), "o--", **style)
    axes.set(xscale="log", yscale="log", xlabel="time steps", ylabel="bytes held for backward")
    axes.set_title("Memory of one training step", loc="left")
    axes.set_ylim(min(held) / 4, max(row.predicted for row in result.lengths) * 6)
    for row in result.lengths:
        for count, colour in ((row.predicted, THROUGH_TIME), (row.converted.bytes, CONVERTED)):
            place = {"xytext": (0, 8), "textcoords": "offset points", "ha": "center", "fontsize": 9, "color": colour}
            axes.annotate(format_bytes(count), (row.steps, count), **place)
    axes.margins(x=0.09)
    axes.grid(True, alpha=0.25)
    axes.legend(frameon=False, loc="upper left")


def _accuracy(axes: Any, result: DemoResult) -> None:
    shares = [100 * result.bptt.accuracy, 100 * result.converted.accuracy]
    bars = axes.bar(("through time", "converted"), shares, width=0.55, color=(THROUGH_TIME, CONVERTED))
    axes.bar_label(bars, [f"{share:.1f} %" for share in shares], padding=3)
    axes.set_ylim(0, 112)
    axes.set_yticks(range(0, 101, 20))
    axes.axhline(10, color=GREY, lw=1, ls=":")
    axes.annotate("chance", (0.5, 10), xytext=(0, 3), textcoords="offset points", ha="center", fontsize=9, color=GREY)
    axes.set_ylabel("test digits recognised, %")
    axes.set_title(f"Accuracy, {result.steps} time steps", loc="left")


def _loss(axes: Any, result: DemoResult) -> None:
    for name, training, colour in zip(NAMES, (result.bptt, result.converted), (THROUGH_TIME, CONVERTED), strict=True):
        axes.plot(range(1, len(training.losses) + 1), training.losses, color=colour, lw=1.3, label=name, alpha=0.9)
    axes.set(xlabel="optimiser step", ylabel="training loss (cross entropy)")
    axes.set_ylim(bottom=0)
    axes.set_title("Training, same start, same batches", loc="left")
    axes.grid(True, alpha=0.25)
    axes.legend(frameon=False)


def _time(axes: Any, result: DemoResult) -> None:
    run = [(row.steps, row.bptt.seconds) for row in result.lengths if row.bptt]
    axes.plot(*zip(*run, strict=True), "o-", color=THROUGH_TIME, label=NAMES[0])
    axes.plot(
        [row.steps for row in result.lengths],
        [row.converted.seconds for row in result.lengths],
        "o-",
        color=CONVERTED,
        label=NAMES[1],
    )
    axes.set(xscale="log", yscale="log", xlabel="time steps", ylabel="seconds")
    axes.set_title("Time of one training step, warm", loc="left")
    for row in result.lengths:
        for cost, colour, offset in ((row.bptt, THROUGH_TIME, 8), (row.converted, CONVERTED, -16)):
            if cost is not None:
                place = {"xytext": (0, offset), "textcoords": "offset points", "ha": "center", "fontsize": 9}
                axes.annotate(format_seconds(cost.seconds), (row.steps, cost.seconds), color=colour, **place)
    axes.margins(x=0.12, y=0.2)
    first = result.converted.first_seconds
    axes.axhline(first, color=GREY, lw=1, ls=":")
    named = "conversion" if result.backend == "eager" else "conversion and compilation"
    axes.annotate(
        f"once: {named}, {format_seconds(first)}",
        (0.02, first),
        xycoords=("axes fraction", "data"),
        xytext=(0, 3),
        textcoords="offset points",
        fontsize=9,
        color=GREY,
    )
    axes.grid(True, alpha=0.25)
