"""export(): what a network is for others."""

from __future__ import annotations

from pathlib import Path

from tracecompile.errors import InvalidInput
from tracecompile.exporting.exported import Exported
from tracecompile.nir.network import TIME_STEP
from tracecompile.runtime.module import TracedModule

FORMATS = ("onnx", "nir")


def export(net: TracedModule, to: str, path: str | Path | None = None, dt: float | None = None) -> Exported:
    """Returns the forward program of a network in another format, and writes it.

    Args:
        net: A converted network, or one that was loaded. It stays as it is; what is exported is its eval mode.
        to: "onnx": one time step, with states in and out, and models of what comes before the first step and after the
            last one where there is such a thing; compared with the network in onnxruntime.
            "nir": a graph of one time step; compared, after it was read back, with the network.
        path: File to write; None writes none.
        dt: Seconds per time step, in which the time constants of a NIR graph are told; None for 1e-4, as ``load_nir``.

    Raises:
        InvalidInput: The network is not captured yet; or a package is missing that the format needs.
        UnsupportedOperation: Something in it cannot be said in this format; names the user's line.
        SelfCheckFailed: What was made does not compute what the network computes.
    """
    if to not in FORMATS:
        raise InvalidInput(f"There is no format {to!r}.", f"Choose one of: {', '.join(FORMATS)}.")
    # Nobody else needs the compiler's parts.
    if to == "nir":
        from tracecompile.exporting.nir.model import to_nir, write_nir

        graph = to_nir(net, TIME_STEP if dt is None else dt)
        return graph if path is None else write_nir(graph, Path(path))
    if dt is not None:
        raise InvalidInput("A step of an ONNX model has no duration.", "Leave dt out; it is for NIR.")
    from tracecompile.exporting.onnx.model import to_onnx, write_onnx

    exported = to_onnx(net)
    return exported if path is None else write_onnx(exported, Path(path))
