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


class Backend(StrEnum):
    """What runs the steps, as the command line offers it."""

    auto = "auto"
    eager = "eager"
    inductor = "inductor"


Target = Annotated[
    str,
    typer.Argument(metavar="TARGET", help="package.module:factory, file.py:factory, file.nir, or a saved folder."),
]
Input = Annotated[
    str | None,
    typer.Option("--input", metavar="WHAT", help="100x32x40, x.npy, x.npz, module:function; several: a,b."),
]
RuleOption = Annotated[Rule, typer.Option("--rule", metavar="NAME", help="measured, analytic, exact or bptt.")]
Bins = Annotated[int | None, typer.Option(min=1, metavar="K", help="Time bins of the measured rule (4).")]
HalfLife = Annotated[float | None, typer.Option(metavar="N", help="Steps after which an input counts half in a trace.")]
Snapshots = Annotated[
    int | None, typer.Option(min=0, metavar="N", help="Moments the exact rule keeps (32); 0: all again.")
]
BackendOption = Annotated[Backend, typer.Option("--backend", metavar="NAME", help="auto, eager or inductor.")]
Chunk = Annotated[int | None, typer.Option(min=1, metavar="N", help="Time steps computed together (chosen).")]
Weights = Annotated[Path | None, typer.Option(metavar="FILE", help="safetensors, or a state dict; runs no code.")]
Device = Annotated[str, typer.Option(metavar="NAME", help="cpu, cuda or cuda:1.")]
Threads = Annotated[int | None, typer.Option(min=1, metavar="N", help="Threads of the processor (torch's).")]
Seed = Annotated[int, typer.Option(metavar="N", help="Of weights and inputs that are drawn.")]
TimeStep = Annotated[float | None, typer.Option(metavar="SECONDS", help="Time step of a NIR graph (1e-4).")]
Force = Annotated[bool, typer.Option("--force", help="Write beside what else is in the folder; that stays.")]
Version = Annotated[
    bool, typer.Option("--version", callback=say_version, is_eager=True, help="Print the version and stop.")
]
Json = Annotated[bool, typer.Option("--json", help="Print the result as JSON.")]
