"""The picture of what needs the far past: what the rules of ``examples/long_memory.py`` learn, round by round.

    python docs/figures/long_memory.py

The trainings take an hour, so that what they came to is kept in ``long_memory.json``: what these commands wrote, one
after the other, with one thread on an x86 CPU. Each training ends after 200 rounds or seven minutes.

    python examples/long_memory.py --steps 500,2000,10000 --backend inductor --every 20 --longest 420 --json ...
"""

from __future__ import annotations

import argparse
import json
from collections.abc import Sequence
from pathlib import Path
from typing import Any

from style import BPTT, CONVERTED, GREY, OTHER, axes_of, finish

STYLES = {
    "bptt": ("backpropagation through time", BPTT, "-"),
    "exact": ("exact", CONVERTED, "--"),
    "measured, K=16": ("measured, 16 bins", CONVERTED, ":"),
    "measured, K=4": ("measured, 4 bins", OTHER, ":"),
    "truncated, 32 steps": ("truncated, 32 steps", GREY, "-"),
}


def main(arguments: Sequence[str] | None = None) -> dict[str, Any]:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--output", type=Path, default=Path(__file__).with_name("long_memory.svg"))
    parser.add_argument("--results", type=Path, default=Path(__file__).with_name("long_memory.json"))
    options = parser.parse_args(arguments)
    rows = json.loads(options.results.read_text())
    lengths = sorted({row["steps"] for row in rows})
    figure, panels = axes_of(len(lengths))
    for axes, steps in zip(panels, lengths, strict=True):
        for row in (row for row in rows if row["steps"] == steps):
            label, colour, line = STYLES[row["rule"]]
            rounds = [int(each) for each in row["correct"]]
            axes.plot(rounds, [100 * share for share in row["correct"].values()], line, color=colour, label=label)
        axes.axhline(50, color=GREY, linewidth=0.8, linestyle=(0, (1, 3)))
        axes.set(title=f"{steps:,} steps", xlabel="rounds of training", xlim=(0, 205), ylim=(40, 102))
    panels[0].set_ylabel("answers that are right, %")
    panels[-1].legend(frameon=False, fontsize=8, loc="upper left")
    finish(figure, options.output)
    return {"lengths": lengths, "rows": rows}


if __name__ == "__main__":
    main()
