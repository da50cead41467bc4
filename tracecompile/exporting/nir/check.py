"""A written graph compared with the network that it was made of: read back, in float64, spike by spike."""

from __future__ import annotations

import tempfile
from collections.abc import Iterator, Mapping
from contextlib import contextmanager
from pathlib import Path
from typing import Any

import torch
from torch import Tensor, nn

from tracecompile.errors import SelfCheckFailed
from tracecompile.exporting.nir.graph import Made
from tracecompile.exporting.nir.values import Run
from tracecompile.nir.network import NIRNetwork, load_nir

TOLERANCE = 1e-9
"""What a value that is no spike may differ by, of the largest of its kind or of 1."""


def read_back(graph: Any, dt: float) -> NIRNetwork:
    """Returns the network of a graph as the reader makes it of a file, in float64."""
    import nir

    with tempfile.TemporaryDirectory() as folder, _in_float64():
        path = Path(folder) / "graph.nir"
        nir.write(path, graph)
        return load_nir(path, dt)


@contextmanager
def _in_float64() -> Iterator[None]:
    before = torch.get_default_dtype()
    torch.set_default_dtype(torch.float64)
    try:
        yield
    finally:
        torch.set_default_dtype(before)


def compare(net: NIRNetwork, made: Made, run: Run) -> set[str]:
    """Compares a graph with a network on one sequence: all spikes are the same, other outputs up to rounding.

    Returns:
        The nodes that spiked, and did not always.

    Raises:
        SelfCheckFailed: They differ.
    """
    found: dict[str, list[Tensor]] = {name: [] for name in made.spiking}
    handles = [_watched(net.get_submodule(net.names[name]), values) for name, values in found.items()]
    try:
        with torch.no_grad():
            output = net(run.stacked(made.input))
    finally:
        for handle in handles:
            handle.remove()
    expected = {name: run.stacked(value) for name, value in made.spiking.items()}
    _same_spikes({name: torch.stack(values) for name, values in found.items()}, expected)
    wanted = run.stacked(made.output)
    scale = max(1.0, float(wanted.abs().max()))
    if output.shape != wanted.shape or not bool(((output - wanted).abs() <= TOLERANCE * scale).all()):
        raise _differs(f"returns something else than {made.output}")
    return {name for name, spikes in expected.items() if 0 < float(spikes.mean()) < 1}


def _watched(unit: nn.Module, values: list[Tensor]) -> Any:
    return unit.register_forward_hook(lambda module, given, made: values.append(_first(made)))


def _first(made: Any) -> Tensor:
    value: Tensor = made[0] if isinstance(made, tuple) else made
    return value


def _same_spikes(found: Mapping[str, Tensor], expected: Mapping[str, Tensor]) -> None:
    for name, spikes in expected.items():
        differ = found[name] != spikes.to(found[name])
        if bool(differ.any()):
            time, sample = (int(each) for each in differ.nonzero()[0][:2])
            raise _differs(f"makes another spike in {name} at step {time} of sample {sample}")


def _differs(what: str) -> SelfCheckFailed:
    return SelfCheckFailed(
        f"Read back, the NIR graph of the network {what}.",
        "NIR spikes above the threshold and not at it; where that is not the reason, please report it, with the model.",
    )
