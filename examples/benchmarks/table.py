"""The result of ``tracecompile bench`` as a table in Markdown, a column for each network.

    python examples/benchmarks/table.py tracecompile-bench.json

Times are multiples of the model's own inference, with its milliseconds in the first row; in brackets the lowest cosine
and the norm of the first layer's gradient, both next to backpropagation through time.
"""

from __future__ import annotations

import argparse
import json
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

Row = Mapping[str, Any]


def cell(row: Row) -> str:
    """Returns the time of a row, and how close its gradient is where it is another one."""
    if row["seconds"] is None:
        return ""
    if row["method"] == "inference":
        return f"{1e3 * row['seconds']:.1f} ms"
    cosine, ratio = row["lowest_cosine"], row["first_norm_ratio"]
    differs = cosine is not None and ratio is not None and (cosine < 0.9999 or abs(ratio - 1) > 1e-3)
    return f"{row['ratio_to_inference']:.2f}" + (f" ({cosine:.3f}, {ratio:.2f})" if differs else "")


def table(result: Mapping[str, Any]) -> str:
    """Returns the table, with the device and the length above it."""
    rows: Sequence[Row] = result["rows"]
    cases = list(dict.fromkeys((row["network"], row["title"], row["steps"]) for row in rows))
    found = {(row["network"], row["steps"], row["method"]): row for row in rows}
    machine, steps = result["environment"], sorted({case[2] for case in cases})
    lines = [
        f"{machine['device']}, torch {machine['torch']}, {', '.join(f'{count:,}' for count in steps)} time steps",
        "",
    ]
    header = [f"{title}, T={count}" if len(steps) > 1 else title for _, title, count in cases]
    lines.append("| | " + " | ".join(f"{title} | memory" for title in header) + " |")
    lines.append("|---" * (1 + 2 * len(cases)) + "|")
    for method, name in {row["method"]: row["name"] for row in rows}.items():
        cells = []
        for network, _, count in cases:
            row = found[network, count, method]
            cells += [cell(row), "" if row["peak_bytes"] is None else f"{row['peak_bytes'] / 1e6:,.0f} MB"]
        lines.append(f"| {name} | " + " | ".join(cells) + " |")
    return "\n".join(lines)


def main(argv: Sequence[str] | None = None) -> None:
    """Prints the table."""
    parser = argparse.ArgumentParser(description=(__doc__ or "").partition("\n")[0])
    parser.add_argument("result", type=Path, help="what tracecompile bench has written")
    print(table(json.loads(parser.parse_args(argv).result.read_text(encoding="utf-8"))))


if __name__ == "__main__":
    main()
