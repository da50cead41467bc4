"""The command line: reads arguments, calls the library, prints. Exit codes: 0 done, 1 model refused, 2 wrong usage."""

from __future__ import annotations

import sys
from collections.abc import Sequence
from pathlib import Path
from typing import Annotated, Any

import torch
import typer
from torch import nn

import tracecompile
from tracecompile.commands.export import export_command
from tracecompile.errors import ConversionError, InvalidInput
from tracecompile.options import Bins, HalfLife, Json, Rule, RuleOption, Shape, Target, TimeStep, Version, Weights
from tracecompile.saving import load, save
from tracecompile.saving.place import BusyFolder, require_room
from tracecompile.settings import settings_of
from tracecompile.targets import UsageError, choose_inputs, is_artifact, load_target, load_weights
from tracecompile.terminal import as_bytes, lengths, require_device, show, words, working, write_text

app = typer.Typer(
    add_completion=False,
    no_args_is_help=True,
    pretty_exceptions_enable=False,
    context_settings={"help_option_names": ["-h", "--help"]},
    epilog="Example:\n\ntracecompile inspect model.py:Net --input 100x32x40",
)
app.command("export", epilog="Example:\n\ntracecompile export saved --to onnx -o net.onnx")(export_command)


@app.callback()
def program(version: Version = False) -> None:
    """Rewrite recurrent spiking networks so that training memory is constant in the number of time steps."""


@app.command(epilog="Example:\n\ntracecompile convert model.py:Net --input 100x32x40 -o saved")
def convert(
    target: Target,
    output: Annotated[Path, typer.Option("--output", "-o", help="Folder to write.")],
    shape: Shape = None,
    rule: RuleOption = Rule.measured,
    bins: Bins = None,
    half_life: HalfLife = None,
    weights: Weights = None,
    dt: TimeStep = None,
    force: Annotated[
        bool, typer.Option("--force", help="Write into a folder that holds other files, and leave these alone.")
    ] = False,
    as_json: Json = False,
) -> None:
    """Convert a model and save it: generated code, weights, report."""
    require_room(output, force)
    net, _, _ = _converted(target, shape, rule, bins, half_life, weights, dt)
    save(net, output, overwrite=force)
    show({"output": str(output), "report": net.report.to_dict()}, f"{net.report}\n\nwritten to {output}", as_json)


@app.command(epilog="Example:\n\ntracecompile inspect model.py:Net --input 100x32x40")
def inspect(
    target: Target,
    shape: Shape = None,
    rule: RuleOption = Rule.measured,
    bins: Bins = None,
    half_life: HalfLife = None,
    weights: Weights = None,
    dt: TimeStep = None,
    html: Annotated[Path | None, typer.Option(help="Write the report as one HTML file.")] = None,
    dump: Annotated[
        Path | None, typer.Option(help="Write the program after each pass into this folder, as Python.")
    ] = None,
    as_json: Json = False,
) -> None:
    """Show what a conversion makes of a model: its layers, traces, parameters and notes."""
    if is_artifact(target):
        if rule != Rule.measured or any(given is not None for given in (shape, bins, half_life, weights, dt)):
            raise UsageError(f"{target} is converted already: no option changes how.")
        net = _load_artifact(target)
    else:
        net, _, _ = _converted(target, shape, rule, bins, half_life, weights, dt)
    if html is not None:
        from tracecompile.diagnostics.html import report_html

        write_text(html, report_html(net.report, title=target))
    if dump is not None:
        for number, (name, text) in enumerate(net.stages):
            write_text(dump / f"{number:02d}_{name}.py", text)
    show(net.report.to_dict(), str(net.report), as_json)


@app.command(epilog="Example:\n\ntracecompile check model.py:Net --input 100x32x40")
def check(
    target: Target,
    shape: Shape = None,
    rule: RuleOption = Rule.measured,
    bins: Bins = None,
    half_life: HalfLife = None,
    weights: Weights = None,
    dt: TimeStep = None,
    as_json: Json = False,
) -> None:
    """Compare a converted model with backpropagation through time: gradients, memory, time of a training step."""
    from tracecompile.diagnostics.check import check_model

    if is_artifact(target):
        raise UsageError(f"{target} is converted already: check needs the model itself, as module:factory.")
    net, model, inputs = _converted(target, shape, rule, bins, half_life, weights, dt)
    with working("comparing with backpropagation through time") as say:
        result = check_model(model, net, inputs, say=say)
    show(result.to_dict(), str(result), as_json)


@app.command(epilog="Example:\n\ntracecompile bench model.py:Net --input 100x32x40")
def bench(
    target: Annotated[
        str | None, typer.Argument(help="A model, as for the other commands; none: the built-in networks.")
    ] = None,
    steps: Annotated[str | None, typer.Option(help="Time steps: 100,1000 (built-in networks: 64,256).")] = None,
    network: Annotated[
        str | None, typer.Option(help="Built-in networks: dense,recurrent,convolutional (all of them).")
    ] = None,
    rows: Annotated[str | None, typer.Option(help="Rows of the table by their keys: bptt,eager-1 (all).")] = None,
    repeats: Annotated[int, typer.Option(min=1, help="Timed runs of each row.")] = 5,
    shape: Shape = None,
    weights: Weights = None,
    dt: TimeStep = None,
    seed: Annotated[int, typer.Option(help="Seed of weights and inputs.")] = 0,
    device: Annotated[str, typer.Option(help="cpu or cuda.")] = "cpu",
    memory_limit: Annotated[
        float | None, typer.Option(help="GB that a graph over time may take (half of what is free).")
    ] = None,
    output: Annotated[Path, typer.Option("--output", "-o", help="Result: OUTPUT.json and OUTPUT.png.")] = Path(
        "tracecompile-bench"
    ),
    picture: Annotated[bool, typer.Option(help="Whether the picture is written.")] = True,
    quick: Annotated[bool, typer.Option("--quick", help="Small networks, short: a look, not a result.")] = False,
    as_json: Json = False,
) -> None:
    """Put a training step side by side with what one would use instead: time, memory, gradients."""
    from tracecompile.bench import run_bench
    from tracecompile.demo.data import MissingDependency

    if target is None and not (shape is None and weights is None and dt is None):
        raise UsageError("--input, --weights and --dt are a TARGET's: the built-in networks have their own.")
    try:
        with working("starting") as say:
            result = run_bench(
                target,
                networks=words(network),
                steps=lengths(steps),
                methods=words(rows),
                repeats=repeats,
                quick=quick,
                shape=shape,
                weights=weights,
                dt=dt,
                seed=seed,
                device=require_device(device),
                limit=None if memory_limit is None else as_bytes(memory_limit),
                output=output,
                picture=picture,
                progress=say,
            )
    except MissingDependency as error:
        raise UsageError(str(error)) from error
    show(result.to_dict(), str(result), as_json)


@app.command(epilog="Example:\n\ntracecompile demo --quick")
def demo(
    steps: Annotated[int, typer.Option(min=1, help="Time steps of each spike train.")] = 100,
    seed: Annotated[int, typer.Option(help="Seed of weights, batches and spikes.")] = 0,
    output: Annotated[Path, typer.Option("--output", "-o", help="Picture to write.")] = Path("tracecompile-demo.png"),
    quick: Annotated[bool, typer.Option("--quick", help="A few seconds: a look, not a result.")] = False,
    as_json: Json = False,
) -> None:
    """Train on handwritten digits twice, show accuracy and memory side by side, write a picture."""
    from tracecompile.demo import MissingDependency, run_demo

    try:
        with working("starting") as say:
            result = run_demo(steps=steps, seed=seed, output=output, quick=quick, progress=say)
    except MissingDependency as error:
        raise UsageError(str(error)) from error
    show(result.to_dict(), str(result), as_json)


def _converted(
    target: str,
    shape: str | None,
    rule: Rule,
    bins: int | None,
    half_life: float | None,
    weights: Path | None,
    dt: float | None,
) -> tuple[tracecompile.TracedModule, nn.Module, tuple[torch.Tensor, ...]]:
    if is_artifact(target):
        raise UsageError(f"{target} is converted already: name the model itself, as module:factory.")
    options = _options(rule, bins, half_life)
    if dt is not None and not dt > 0:
        raise UsageError("--dt must be a positive number of seconds.")
    model, module = load_target(target, dt)
    if weights is not None:
        load_weights(model, weights)
    inputs = choose_inputs(shape, module)
    with working("converting"):
        return tracecompile.convert(model, inputs, **options), model, inputs


def _options(rule: Rule, bins: int | None, half_life: float | None) -> dict[str, Any]:
    """Returns the options of convert.

    Raises:
        UsageError: One of them means nothing, be it beside another one.
    """
    options: dict[str, Any] = {"rule": rule.value}
    if bins is not None:
        options["bins"] = bins
    if half_life is not None:
        if not half_life > 0:
            raise UsageError("--half-life must be a positive number of time steps.")
        options["decay"] = 0.5 ** (1.0 / half_life)
    try:
        settings_of(**options)
    except InvalidInput as refusal:
        given = {"--rule": rule.value, "--bins": bins, "--half-life": half_life}
        said = " ".join(f"{name} {value}" for name, value in given.items() if value is not None)
        raise UsageError(f"{said}: {refusal}") from refusal
    return options


def _load_artifact(target: str) -> tracecompile.TracedModule:
    if not (Path(target) / "program.json").is_file():
        raise UsageError(f"{target} is not a folder that tracecompile convert wrote.")
    return load(target, weights_only=True)  # one looks at what one does not trust


def main(arguments: Sequence[str] | None = None) -> None:
    """Runs the command line and exits with its code."""
    try:
        app(args=list(arguments) if arguments is not None else None, prog_name="tracecompile")
    except (UsageError, BusyFolder, OSError) as mistake:
        typer.echo(f"tracecompile: {mistake}", err=True)
        sys.exit(2)
    except ConversionError as refusal:
        typer.echo(f"tracecompile: {refusal}", err=True)
        sys.exit(1)
