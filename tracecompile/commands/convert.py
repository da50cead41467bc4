"""``tracecompile convert``."""

from __future__ import annotations

from pathlib import Path
from typing import Annotated

import typer

from tracecompile.commands.conversion import Conversion, with_conversion
from tracecompile.options import Json
from tracecompile.saving import save
from tracecompile.saving.place import require_room
from tracecompile.terminal import show


@with_conversion
def convert(
    conversion: Conversion,
    output: Annotated[Path, typer.Option("--output", "-o", metavar="FOLDER", help="Where it is written.")],
    force: Annotated[
        bool, typer.Option("--force", help="Write beside what else is in the folder; that stays.")
    ] = False,
    as_json: Json = False,
) -> None:
    """Convert a model and save it: generated code, weights, report."""
    require_room(output, force)
    net, _, _ = conversion.run()
    save(net, output, overwrite=force)
    show({"output": str(output), "report": net.report.to_dict()}, f"{net.report}\n\nwritten to {output}", as_json)
