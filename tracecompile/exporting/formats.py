"""export(): what a network is for others."""

from __future__ import annotations

from pathlib import Path

from tracecompile.errors import InvalidInput
from tracecompile.exporting.exported import Exported
from tracecompile.runtime.module import TracedModule

FORMATS = ("onnx",)


def export(net: TracedModule, to: str, path: str | Path | None = None) -> Exported:
    """Returns the forward program of a network in another format, and writes it.

    Args:
        net: A converted network, or one that was loaded. It stays as it is; what is exported is its eval mode.
        to: "onnx": one time step, with states in and out, and models of what comes before the first step and after the
            last one where there is such a thing; compared with the network in onnxruntime.
        path: File to write; None writes none.

    Raises:
        InvalidInput: The network is not captured yet; or a package is missing that the format needs.
        UnsupportedOperation: Something in it cannot be said in this format; names the user's line.
        SelfCheckFailed: What was made does not compute what the network computes.
    """
    if to not in FORMATS:
        raise InvalidInput(f"There is no format {to!r}.", f"Choose one of: {', '.join(FORMATS)}.")
    from tracecompile.exporting.onnx.model import to_onnx, write_onnx  # nobody else needs the compiler's parts

    exported = to_onnx(net)
    return exported if path is None else write_onnx(exported, Path(path))
