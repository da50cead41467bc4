"""The options that commands of the command line share."""

from __future__ import annotations

from enum import StrEnum
from pathlib import Path
from typing import Annotated

import typer

from tracecompile.version import VERSION


def say_version(wanted: bool) -> None:
    """Prints the version and ends, where that is wanted."""
    if wanted:
        typer.echo(f"tracecompile {VERSION}")
        raise typer.Exit


class Rule(StrEnum):
    """The gradient rules, as the command line offers them."""

    measured = "measured"
    analytic = "analytic"
    exact = "exact"
    bptt = "bptt"


Target = Annotated[
    str, typer.Argument(help="package.module:factory, path/file.py:factory, a NIR graph (file.nir), or a saved folder.")
]
Shape = Annotated[
    str | None, typer.Option("--input", help="Shape of the input: 100x32x40; of several: 100x32x40,32x4.")
]
RuleOption = Annotated[Rule, typer.Option(help="Gradient rule.")]
Bins = Annotated[int | None, typer.Option(min=1, help="Time bins of the measured rule.")]
HalfLife = Annotated[float | None, typer.Option(help="Steps after which an input counts half in its trace.")]
TimeStep = Annotated[float | None, typer.Option(help="Seconds per time step of a NIR graph (1e-4).")]
Weights = Annotated[Path | None, typer.Option(help="Weights: safetensors, or a state dict of torch.save.")]
Version = Annotated[
    bool, typer.Option("--version", callback=say_version, is_eager=True, help="Print the version and stop.")
]
Json = Annotated[bool, typer.Option("--json", help="Print the result as JSON.")]
