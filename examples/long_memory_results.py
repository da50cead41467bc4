"""What ``long_memory.py`` has found: kept in files, as a table, and drawn.

python examples/long_memory_results.py exact.json bptt.json --output long_memory
"""

from __future__ import annotations

import argparse
import json
import math
import statistics
from collections.abc import Sequence
from dataclasses import asdict, dataclass, field
from pathlib import Path


@dataclass
class Row:
    """What one rule came to.

    Attributes:
        rule: Its name.
        steps: Of a trial.
        correct: Share of new trials that it answers, by the rounds of training before.
        held: Bytes held for backward.
        seconds: Median of a round's.
    """

    rule: str
    steps: int
    correct: dict[int, float] = field(default_factory=dict)
    held: int = 0
    seconds: float = math.nan

    @property
    def last(self) -> float:
        """The mean share of the last three tests."""
        return statistics.mean(list(self.correct.values())[-3:])

    def __str__(self) -> str:
        cells = f"{self.last:.1%}", f"{max(self.correct)}", f"{self.held / 1e6:.2f} MB", f"{self.seconds:.2f} s"
        return f"| {self.steps:,} | {self.rule} | {' | '.join(cells)} |"


def write_down(rows: Sequence[Row], path: Path) -> None:
    """Keeps rows in a file."""
    path.write_text(json.dumps([asdict(row) for row in rows]))


def read(path: Path) -> list[Row]:
    """Returns the rows of a file."""
    rows = [Row(**given) for given in json.loads(path.read_text())]
    for row in rows:
        row.correct = {int(turn): share for turn, share in row.correct.items()}
    return rows


def table_of(rows: Sequence[Row]) -> str:
    """Returns a table, a rule a row."""
    head = "| steps | rule | right | rounds | held | a round |\n|---|---|---|---|---|---|"
    return "\n".join([head, *(str(row) for row in rows)])


def draw(rows: Sequence[Row], path: Path) -> None:
    """Draws what the rules have learnt, round by round, one picture per number of steps."""
    import matplotlib

    matplotlib.use("Agg")
    from matplotlib import pyplot

    lengths = list(dict.fromkeys(row.steps for row in rows))
    figure, axes = pyplot.subplots(1, len(lengths), figsize=(4.5 * len(lengths), 3.4), sharey=True, squeeze=False)
    for axis, steps in zip(axes[0], lengths, strict=True):
        for row in (row for row in rows if row.steps == steps):
            style = "--" if row.rule == "exact" else "-"  # seen on top of backpropagation through time
            axis.plot(list(row.correct), [100 * share for share in row.correct.values()], style, label=row.rule)
        axis.axhline(50, color="grey", linewidth=0.8, linestyle=":")
        axis.set(title=f"{steps:,} steps", xlabel="rounds of training")
    axes[0][0].set_ylabel("answers that are right, %")
    axes[0][0].legend(frameon=False, fontsize=8)
    figure.tight_layout()
    figure.savefig(path, dpi=100)
    pyplot.close(figure)


def main(argv: Sequence[str] | None = None) -> list[Row]:
    """Prints the table of what several files hold, and draws it."""
    parser = argparse.ArgumentParser(description="A table and a picture of what long_memory.py wrote with --json.")
    parser.add_argument("results", type=Path, nargs="+")
    parser.add_argument("--output", type=Path, help="picture to draw")
    options = parser.parse_args(argv)
    rows = [row for path in options.results for row in read(path)]
    print(table_of(rows))
    if options.output is not None:
        draw(rows, options.output.with_suffix(".png"))
    return rows


if __name__ == "__main__":
    main()
