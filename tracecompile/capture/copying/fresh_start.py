"""A copy of the model as its library's own reset leaves it."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass
from typing import Any

import torch
from torch import nn

HELD = "The model held states of an earlier sequence; the converted module starts a new one."


@dataclass(frozen=True)
class Library:
    """How one library keeps and resets the states of its neurons.

    Attributes:
        base: Name of the class that has the reset.
        reset: Resets one neuron.
        states: Returns the states that a neuron holds.
        unreached: The library's function that resets a network, where it does not reach a converted module.
    """

    base: str
    reset: Callable[[Any], None]
    states: Callable[[Any], list[Any]]
    unreached: str = ""


def _unsaved_buffers(neuron: nn.Module) -> list[Any]:
    return [value for name, value in neuron._buffers.items() if name in neuron._non_persistent_buffers_set]


def _empty_buffers(neuron: nn.Module) -> None:
    """Makes the states what they are in a new layer; the library's own reset would keep the last batch size."""
    for name, value in neuron._buffers.items():
        if value is not None:
            neuron._buffers[name] = torch.zeros(0, dtype=value.dtype, device=value.device)


def _reset_and_empty(neuron: Any) -> None:
    """Resets a neuron whose states then still have the last batch size, and makes them what they are in a new one."""
    before = dict(neuron._buffers)
    neuron.reset_mem()
    for name in neuron._non_persistent_buffers_set:
        value = neuron._buffers.get(name)
        if value is not None and value is not before.get(name):
            neuron._buffers[name] = torch.zeros(0, dtype=value.dtype, device=value.device)


LIBRARIES = {
    "snntorch": Library("", _reset_and_empty, _unsaved_buffers, "snntorch.utils.reset"),
    "spikingjelly": Library("MemoryModule", lambda neuron: neuron.reset(), lambda neuron: [*neuron._memories.values()]),
    "sinabs": Library(
        "StatefulLayer", _empty_buffers, lambda neuron: [*neuron._buffers.values()], "sinabs.reset_states"
    ),
    "tracetorch": Library(
        "Layer",
        lambda neuron: neuron.zero_states(),
        lambda neuron: [getattr(neuron, name) for name in neuron._state_names],
        "zero_states of a traceTorch model",
    ),
}
"""By top-level package. Their classes are never imported: whoever owns a model of them has imported them."""


def library_of(module: nn.Module) -> Library | None:
    """Returns the library whose neuron a module is, None for any other module."""
    for base in type(module).__mro__:
        library = LIBRARIES.get(base.__module__.partition(".")[0])
        if library is not None and (base.__name__ == library.base if library.base else hasattr(module, "reset_mem")):
            return library
    return None


def start_afresh(copied: nn.Module) -> tuple[str, ...]:
    """Resets the library neurons of a copy, at any depth; returns what the report has to say about it.

    A network that ran before conversion starts a new sequence once it is converted, as it does after ``reset``.
    """
    notes: dict[str, None] = {}
    for module in copied.modules():
        library = library_of(module)
        if library is None:
            continue
        if any(isinstance(value, torch.Tensor) and bool(value.any()) for value in library.states(module)):
            notes[HELD] = None
        library.reset(module)
        if library.unreached:
            notes[f"A sequence starts with reset() of the converted module: {library.unreached} does not reach it."] = (
                None
            )
    return tuple(notes)
