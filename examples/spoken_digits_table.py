"""A table of several runs of ``spoken_digits.py``, of what each wrote with --json.

    python examples/spoken_digits.py --data spoken_digits.npz --rule bptt --seed 0 --json runs/bptt-0.json
    python examples/spoken_digits.py --data spoken_digits.npz --rule exact --seed 0 --json runs/exact-0.json
    python examples/spoken_digits_table.py runs/*.json

Beside the accuracies stands how far a rule's losses are from those of backpropagation through time under the same seed.
"""

from __future__ import annotations

import argparse
import json
import statistics
from collections.abc import Sequence
from pathlib import Path

from spoken_digits import COMPARED, Run

REFERENCE = "bptt"
LAST = 10
"""Epochs at the end whose accuracies are averaged: one recording is 0.4 points, and epochs differ by several."""
COLUMNS = (
    "rule",
    f"accuracy, mean of the last {LAST} epochs",
    "seeds",
    "after the last epoch",
    f"losses of {COMPARED} updates",
    "held",
    "an epoch",
)


def at_the_end(run: Run) -> float:
    """Returns the mean accuracy of the last epochs."""
    return statistics.mean(run.accuracies[-LAST:])


def apart(run: Run, reference: Run) -> float:
    """Returns by how much the losses of the first updates differ, at most and relative to the reference's."""
    return max(abs(one - other) / abs(other) for one, other in zip(run.losses, reference.losses, strict=True))


def row_of(rule: str, runs: Sequence[Run], references: dict[int, Run]) -> str:
    """Returns the row of one rule, whose runs are those of several seeds."""
    shares = [at_the_end(run) for run in runs]
    seeds = " ".join(f"{share:.3f}" for share in shares)
    last = " ".join(f"{run.accuracies[-1]:.3f}" for run in runs)
    paired = [apart(run, references[run.seed]) for run in runs if run.seed in references]
    losses = f"{max(paired):.1e}" if paired and rule != REFERENCE else ""
    seconds = statistics.median(run.seconds for run in runs)
    held = f"{runs[0].held / 1e6:.2f} MB"
    return f"| {rule} | {statistics.mean(shares):.3f} | {seeds} | {last} | {losses} | {held} | {seconds:.1f} s |"


def table_of(runs: Sequence[Run]) -> str:
    """Returns the table of all runs, a rule a row, in the order in which they are given."""
    by_rule: dict[str, list[Run]] = {}
    for run in runs:
        by_rule.setdefault(run.rule, []).append(run)
    references = {run.seed: run for run in by_rule.get(REFERENCE, ())}
    rows = [row_of(rule, sorted(some, key=lambda run: run.seed), references) for rule, some in by_rule.items()]
    return "\n".join([f"| {' | '.join(COLUMNS)} |", f"|{'---|' * len(COLUMNS)}", *rows])


def main(argv: Sequence[str] | None = None) -> str:
    """Prints the table, says which runs are shorter than the longest, and returns the table."""
    parser = argparse.ArgumentParser(description="A table of several runs of spoken_digits.py.")
    parser.add_argument("runs", type=Path, nargs="+", help="files that its --json wrote")
    runs = [Run(**json.loads(path.read_text())) for path in parser.parse_args(argv).runs]
    table = table_of(runs)
    print(table)
    longest = max(len(run.accuracies) for run in runs)
    for run in runs:
        if len(run.accuracies) < longest:
            print(f"{run.rule}, seed {run.seed}: {len(run.accuracies)} of {longest} epochs")
    return table


if __name__ == "__main__":
    main()
