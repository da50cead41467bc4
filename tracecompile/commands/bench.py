"""``tracecompile bench``."""

from __future__ import annotations

from pathlib import Path
from typing import Annotated

import typer

from tracecompile.options import Device, Input, Json, Seed, Threads, TimeStep, Weights
from tracecompile.targets import UsageError
from tracecompile.terminal import as_bytes, lengths, require_device, set_threads, show, words, working


def bench(
    target: Annotated[
        str | None, typer.Argument(metavar="TARGET", help="A model, as for convert; none: the built-in networks.")
    ] = None,
    steps: Annotated[str | None, typer.Option(metavar="N,N", help="Time steps (built-in networks: 64,256).")] = None,
    network: Annotated[
        str | None, typer.Option(metavar="NAME,NAME", help="Of dense,recurrent,convolutional (all).")
    ] = None,
    rows: Annotated[str | None, typer.Option(metavar="KEY,KEY", help="Rows of the table: bptt,eager-1 (all).")] = None,
    repeats: Annotated[int, typer.Option(min=1, metavar="N", help="Timed runs of each row.")] = 5,
    input_: Input = None,
    weights: Weights = None,
    device: Device = "cpu",
    threads: Threads = None,
    seed: Seed = 0,
    dt: TimeStep = None,
    memory_limit: Annotated[
        float | None, typer.Option(metavar="GB", help="That a graph over time may take (half of what is free).")
    ] = None,
    allocator: Annotated[bool, typer.Option("--allocator", help="Also the peak without what malloc keeps.")] = False,
    output: Annotated[
        Path, typer.Option("--output", "-o", metavar="NAME", help="Writes NAME.json and NAME.png.")
    ] = Path("tracecompile-bench"),
    picture: Annotated[bool, typer.Option(help="Whether the picture is written.")] = True,
    quick: Annotated[bool, typer.Option("--quick", help="Small networks, short: a look, not a result.")] = False,
    as_json: Json = False,
) -> None:
    """Time a training step beside what one would use instead."""
    from tracecompile.bench import run_bench
    from tracecompile.demo.data import MissingDependency

    if target is None and not (input_ is None and weights is None and dt is None):
        raise UsageError("--input, --weights and --dt are a TARGET's: the built-in networks have their own.")
    set_threads(threads)
    try:
        with working("starting") as say:
            result = run_bench(
                target,
                networks=words(network),
                steps=lengths(steps),
                methods=words(rows),
                repeats=repeats,
                quick=quick,
                shape=input_,
                weights=weights,
                dt=dt,
                seed=seed,
                device=require_device(device),
                limit=None if memory_limit is None else as_bytes(memory_limit),
                allocator=allocator,
                output=output,
                picture=picture,
                progress=say,
            )
    except MissingDependency as error:
        raise UsageError(str(error)) from error
    show(result.to_dict(), str(result), as_json)
