"""``tracecompile inspect``."""

from __future__ import annotations

from pathlib import Path
from typing import Annotated

import typer

import tracecompile
from tracecompile.commands.conversion import Conversion, with_conversion
from tracecompile.commands.stages import require_stages_room, write_stages
from tracecompile.options import Force, Json
from tracecompile.saving import load
from tracecompile.saving.place import PROGRAM
from tracecompile.targets import UsageError, is_artifact
from tracecompile.terminal import require_suffix, show, working, write_text


@with_conversion
def inspect(
    conversion: Conversion,
    html: Annotated[
        Path | None, typer.Option(metavar="FILE", help="Write the report as one page: report.html.")
    ] = None,
    dump: Annotated[
        Path | None, typer.Option(metavar="FOLDER", help="Write the program after each pass, as Python.")
    ] = None,
    force: Force = False,
    as_json: Json = False,
) -> None:
    """Show what becomes of a model: layers, traces, parameters, notes."""
    if html is not None:
        require_suffix("--html", html, ".html", ".htm")
    if dump is not None:
        require_stages_room(dump, force)
    if is_artifact(conversion.target):
        net, inputs = _load(conversion), None
    else:
        net, _, inputs = conversion.run()
    if html is not None:
        from tracecompile.page import figures_of, page

        with working("looking at the network"):
            write_text(html, page(figures_of(net, inputs, title=conversion.target)))
    if dump is not None:
        write_stages(net, dump)
    show(net.report.to_dict(), str(net.report), as_json)


def _load(conversion: Conversion) -> tracecompile.TracedModule:
    target = conversion.target
    if conversion.changed:
        raise UsageError(f"{target} is converted already: no option changes how.")
    if not (Path(target) / PROGRAM).is_file():
        raise UsageError(f"{target} is not a folder that tracecompile convert wrote.")
    return load(target, weights_only=True)  # one looks at what one does not trust
