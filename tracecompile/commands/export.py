"""``tracecompile export``."""

from __future__ import annotations

from enum import StrEnum
from pathlib import Path
from typing import Annotated

import typer

import tracecompile
from tracecompile.options import Json, TimeStep
from tracecompile.saving import load
from tracecompile.targets import UsageError
from tracecompile.terminal import show, working


class Format(StrEnum):
    """What a network is exported to, as the command line offers it."""

    onnx = "onnx"
    nir = "nir"


def export(
    folder: Annotated[Path, typer.Argument(metavar="FOLDER", help="A folder that tracecompile convert wrote.")],
    to: Annotated[Format, typer.Option("--to", metavar="NAME", help="onnx: one time step, with its states; or nir.")],
    output: Annotated[Path, typer.Option("--output", "-o", metavar="FILE", help="File to write.")],
    dt: TimeStep = None,
    as_json: Json = False,
) -> None:
    """Write a saved network for deployment, as ONNX or as a NIR graph."""
    if not (folder / "program.json").is_file():
        raise UsageError(f"{folder} is not a folder that tracecompile convert wrote.")
    if dt is not None and to is not Format.nir:
        raise UsageError("--dt is the time step of a NIR graph: it goes with --to nir.")
    if dt is not None and not dt > 0:
        raise UsageError("--dt is the length of a time step in seconds: it has to be above zero.")
    if output.is_dir():
        raise UsageError(f"{output} is a folder: name a file.")
    with working("exporting"):
        net = load(folder, weights_only=True)  # what is exported runs no code of it
        exported = tracecompile.export(net, to.value, output, dt)
    show(exported.to_dict(), str(exported), as_json)
