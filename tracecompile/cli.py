"""The command line: reads arguments, calls the library, prints. Exit codes: 0 done, 1 model refused, 2 wrong usage."""

from __future__ import annotations

import json
import sys
from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from enum import StrEnum
from pathlib import Path
from typing import Annotated, Any

import torch
import typer
from rich.console import Console
from torch import nn

import tracecompile
from tracecompile.errors import ConversionError
from tracecompile.saving import load, save
from tracecompile.targets import UsageError, choose_inputs, is_artifact, load_target, load_weights

app = typer.Typer(
    add_completion=False,
    no_args_is_help=True,
    pretty_exceptions_enable=False,
    help="Rewrite recurrent spiking networks so that training memory is constant in the number of time steps.",
)


class Rule(StrEnum):
    """The gradient rules, as the command line offers them."""

    measured = "measured"
    analytic = "analytic"
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
Json = Annotated[bool, typer.Option("--json", help="Print the result as JSON.")]


@app.command()
def convert(
    target: Target,
    output: Annotated[Path, typer.Option("--output", "-o", help="Folder to write.")],
    shape: Shape = None,
    rule: RuleOption = Rule.measured,
    bins: Bins = None,
    half_life: HalfLife = None,
    weights: Weights = None,
    dt: TimeStep = None,
    as_json: Json = False,
) -> None:
    """Convert a model and save it: generated code, weights, report."""
    if output.exists() and not output.is_dir():
        raise UsageError(f"{output} exists and is not a folder.")
    net, _, _ = _converted(target, shape, rule, bins, half_life, weights, dt)
    save(net, output)
    _print({"output": str(output), "report": net.report.to_dict()}, f"{net.report}\n\nwritten to {output}", as_json)


@app.command()
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
        net = _load_artifact(target)
    else:
        net, _, _ = _converted(target, shape, rule, bins, half_life, weights, dt)
    if html is not None:
        from tracecompile.diagnostics.html import report_html

        _write(html, report_html(net.report, title=target))
    if dump is not None:
        for number, (name, text) in enumerate(net.stages):
            _write(dump / f"{number:02d}_{name}.py", text)
    _print(net.report.to_dict(), str(net.report), as_json)


@app.command()
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
    with _working("comparing with backpropagation through time"):
        result = check_model(model, net, inputs)
    _print(result.to_dict(), str(result), as_json)


@app.command()
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

    try:
        with _working("starting") as say:
            result = run_bench(
                target,
                networks=_words(network),
                steps=_whole_numbers(steps),
                methods=_words(rows),
                repeats=repeats,
                quick=quick,
                shape=shape,
                weights=weights,
                dt=dt,
                seed=seed,
                device=device,
                limit=None if memory_limit is None else int(memory_limit * 1e9),
                output=output,
                picture=picture,
                progress=say,
            )
    except MissingDependency as error:
        raise UsageError(str(error)) from error
    _print(result.to_dict(), str(result), as_json)


@app.command()
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
        with _working("starting") as say:
            result = run_demo(steps=steps, seed=seed, output=output, quick=quick, progress=say)
    except MissingDependency as error:
        raise UsageError(str(error)) from error
    _print(result.to_dict(), str(result), as_json)


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
    if half_life is not None and not half_life > 0:
        raise UsageError("--half-life must be a positive number of time steps.")
    if dt is not None and not dt > 0:
        raise UsageError("--dt must be a positive number of seconds.")
    model, module = load_target(target, dt)
    if weights is not None:
        load_weights(model, weights)
    inputs = choose_inputs(shape, module)
    options: dict[str, Any] = {"rule": rule.value}
    if bins is not None:
        options["bins"] = bins
    if half_life is not None:
        options["decay"] = 0.5 ** (1.0 / half_life)
    with _working("converting"):
        return tracecompile.convert(model, inputs, **options), model, inputs


def _load_artifact(target: str) -> tracecompile.TracedModule:
    if not (Path(target) / "program.json").is_file():
        raise UsageError(f"{target} is not a folder that tracecompile convert wrote.")
    return load(target, weights_only=True)  # one looks at what one does not trust


def _words(text: str | None) -> list[str] | None:
    return None if text is None else [word.strip() for word in text.split(",")]


def _whole_numbers(text: str | None) -> list[int] | None:
    words = _words(text)
    if words is None:
        return None
    if not all(word.isdecimal() and int(word) > 0 for word in words):
        raise UsageError(f"--steps {text!r} is no list of lengths: write it like 100,1000.")
    return [int(word) for word in words]


def _write(path: Path, text: str) -> None:
    path.parent.mkdir(parents=True, exist_ok=True)
    path.write_text(text, encoding="utf-8")


def _print(result: dict[str, Any], text: str, as_json: bool) -> None:
    typer.echo(json.dumps(result, indent=2) if as_json else text)


@contextmanager
def _working(message: str) -> Iterator[Any]:
    """Shows what is being done while it is done, on a terminal only; yields the function that changes the message."""
    console = Console(stderr=True)
    if not console.is_terminal:
        yield lambda text: None
        return
    with console.status(message) as status:
        yield status.update


def main(arguments: Sequence[str] | None = None) -> None:
    """Runs the command line and exits with its code."""
    try:
        app(args=list(arguments) if arguments is not None else None, prog_name="tracecompile")
    except ConversionError as refusal:
        typer.echo(f"tracecompile: {refusal}", err=True)
        sys.exit(1)
    except (UsageError, OSError) as mistake:
        typer.echo(f"tracecompile: {mistake}", err=True)
        sys.exit(2)
