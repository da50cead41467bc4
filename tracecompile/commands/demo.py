"""``tracecompile demo``."""

from __future__ import annotations

from pathlib import Path
from typing import Annotated

import typer

from tracecompile.options import Json, Seed
from tracecompile.targets import UsageError
from tracecompile.terminal import require_suffix, show, working


def demo(
    steps: Annotated[int, typer.Option(min=1, metavar="N", help="Time steps of each spike train.")] = 250,
    output: Annotated[Path, typer.Option("--output", "-o", metavar="FILE", help="Picture to write.")] = Path(
        "tracecompile-demo.png"
    ),
    quick: Annotated[bool, typer.Option("--quick", help="A few seconds: a look, not a result.")] = False,
    threads: Annotated[int, typer.Option(min=1, metavar="N", help="Threads of the processor.")] = 1,
    seed: Seed = 0,
    as_json: Json = False,
) -> None:
    """Train on digits twice: accuracy, time and memory, and a picture."""
    from tracecompile.demo import MissingDependency, run_demo

    require_suffix("--output", output, ".png")
    try:
        with working("starting") as say:
            result = run_demo(steps, seed, output, quick=quick, threads=threads, progress=say)
    except MissingDependency as error:
        raise UsageError(str(error)) from error
    show(result.to_dict(), str(result), as_json)
