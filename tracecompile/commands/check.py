"""``tracecompile check``."""

from __future__ import annotations

from typing import Annotated

import typer

from tracecompile.commands.conversion import Conversion, with_conversion
from tracecompile.options import Json, Threads
from tracecompile.targets import UsageError, is_artifact
from tracecompile.terminal import set_threads, show, working

BELOW = 3
"""The exit code where a bound does not hold that the user set."""


@with_conversion
def check(
    conversion: Conversion,
    steps: Annotated[
        int | None, typer.Option(min=1, metavar="N", help="Calls of a model of one step a call (100).")
    ] = None,
    min_cosine: Annotated[
        float | None, typer.Option(metavar="X", help="Exit with 3 where a gradient's cosine is below.")
    ] = None,
    threads: Threads = None,
    as_json: Json = False,
) -> None:
    """Compare the rules on a model: gradients, time, memory, advice."""
    from tracecompile.diagnostics.check import STEPS, check_model

    if is_artifact(conversion.target):
        raise UsageError(f"{conversion.target} is converted already: check needs the model itself, as module:factory.")
    if min_cosine is not None and not -1 <= min_cosine <= 1:  # nan is neither
        raise UsageError(f"--min-cosine {min_cosine:g} bounds nothing: a cosine lies between -1 and 1.")
    set_threads(threads)
    net, model, inputs = conversion.run()
    if steps is not None and net.program.kind == "sequence":
        raise UsageError("--steps is for a model that takes one step a call: give the length of yours with --input.")
    with working("comparing with backpropagation through time") as say:
        result = check_model(model, net, inputs, steps or STEPS, say=say)
    below = [] if min_cosine is None else result.below(min_cosine)
    bound = None if min_cosine is None else {"min_cosine": min_cosine, "below": below}
    show({**result.to_dict(), "bound": bound}, str(result), as_json)
    if below:
        typer.echo(f"tracecompile: --min-cosine {min_cosine:g} does not hold for {', '.join(below)}.", err=True)
        raise typer.Exit(BELOW)
