"""Other tensors in the places of a graph's parameters, while a piece of the sequence is run again."""

from __future__ import annotations

from collections.abc import Iterable, Iterator, Mapping
from contextlib import contextmanager

from torch import Tensor, nn


@contextmanager
def in_place_of_parameters(graph: nn.Module, stand_ins: Mapping[Tensor, Tensor]) -> Iterator[None]:
    """Lets the modules of a graph hold stand-ins while the context is open; other threads see them there."""
    tables = {id(module): module._parameters for module in graph.modules()}.values()
    entries = [(table, name, value) for table in tables for name, value in table.items() if value in stand_ins]
    try:
        for table, name, value in entries:
            table[name] = stand_ins[value]  # type: ignore[assignment,index]
        yield
    finally:
        for table, name, value in entries:
            table[name] = value


def require_unchanged(versions: Iterable[tuple[Tensor, int]]) -> None:
    """Refuses to go backward with other parameters than those of the forward pass.

    Args:
        versions: Parameters, with the version that each had.

    Raises:
        RuntimeError: One was modified.
    """
    if any(parameter._version != version for parameter, version in versions):
        raise RuntimeError(
            "A parameter was modified in place between the forward and the backward pass; "
            "its gradient would be wrong. Call backward before the optimizer's step."
        )
