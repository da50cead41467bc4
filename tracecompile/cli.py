"""The command line: puts the commands together, and says what goes wrong.

Exit codes: 0 done, 1 the model was refused, 2 wrong usage, 3 a bound that the user set does not hold, 130 interrupted.
"""

from __future__ import annotations

import sys
from collections.abc import Callable, Sequence

import typer

from tracecompile.commands.bench import bench
from tracecompile.commands.check import check
from tracecompile.commands.convert import convert
from tracecompile.commands.demo import demo
from tracecompile.commands.export import export
from tracecompile.commands.inspect import inspect
from tracecompile.errors import ConversionError
from tracecompile.options import Version
from tracecompile.saving.place import BusyFolder
from tracecompile.targets import UsageError

COMMANDS: tuple[tuple[Callable[..., None], str], ...] = (
    (convert, "tracecompile convert model.py:Net --input 100x32x40 -o saved"),
    (inspect, "tracecompile inspect model.py:Net --input 100x32x40"),
    (check, "tracecompile check model.py:Net --input 100x32x40 --min-cosine 0.9"),
    (bench, "tracecompile bench model.py:Net --input 100x32x40"),
    (demo, "tracecompile demo --quick"),
    (export, "tracecompile export saved --to onnx -o net.onnx"),
)
"""Every command, and the line that its help ends in."""

app = typer.Typer(
    no_args_is_help=True,
    pretty_exceptions_enable=False,
    rich_markup_mode=None,  # its boxes take twice the lines, and stay in a pipe
    context_settings={"help_option_names": ["-h", "--help"], "max_content_width": 100},
    epilog="Example: tracecompile inspect model.py:Net --input 100x32x40",
)


@app.callback()
def program(version: Version = False) -> None:
    """Rewrite recurrent spiking networks so that training memory is constant in the number of time steps."""


for command, example in COMMANDS:
    app.command(epilog=f"Example: {example}")(command)


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
