"""What the figures of the documentation have in common."""

from __future__ import annotations

from collections.abc import Sequence
from pathlib import Path
from typing import Any

import matplotlib as mpl

BPTT, CONVERTED, GREY, OTHER = "#c2452d", "#1f6f9f", "#6b7280", "#b7791f"


def axes_of(count: int, widths: Sequence[float] | None = None, height: float = 2.9) -> tuple[Any, Sequence[Any]]:
    """Returns a figure with panels side by side."""
    from matplotlib.backends.backend_agg import FigureCanvasAgg
    from matplotlib.figure import Figure

    mpl.rcParams.update({"svg.hashsalt": "tracecompile", "svg.fonttype": "none", "font.size": 9})
    figure = Figure(figsize=(10, height), layout="constrained")
    FigureCanvasAgg(figure)
    panels = figure.subplots(1, count, width_ratios=widths, squeeze=False)[0]
    for axes in panels:
        axes.spines[["top", "right"]].set_visible(False)
    return figure, panels


def finish(figure: Any, path: Path) -> None:
    """Writes an SVG that is the same for the same figures."""
    figure.set_facecolor("white")
    figure.savefig(path, format="svg", metadata={"Date": None})
    # No blanks at the ends of lines: they are noise in a diff.
    path.write_text("\n".join(line.rstrip() for line in path.read_text().splitlines()) + "\n")
    print(f"written: {path}")
