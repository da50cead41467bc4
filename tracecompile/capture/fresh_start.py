"""A copy of the model as its library's own reset leaves it."""

from __future__ import annotations

import torch
from torch import nn

RESETS = {"snntorch": ("reset_mem", "snntorch.utils.reset")}
"""The method that resets one neuron, and the function that resets a network, by the top-level package of the library.
Its classes are never imported: whoever owns a model of them has imported them."""

HELD = "The model held states of an earlier sequence; the converted module starts a new one."


def start_afresh(copied: nn.Module) -> tuple[str, ...]:
    """Resets the library neurons of a copy, at any depth; returns what the report has to say about it.

    A network that ran before conversion starts a new sequence once it is converted, as it does after ``reset``.
    """
    notes: dict[str, None] = {}
    for module in copied.modules():
        for base in type(module).__mro__:
            method, function = RESETS.get(base.__module__.partition(".")[0], ("", ""))
            if method and callable(getattr(module, method, None)):
                if any(bool(value.any()) for value in states_of(module)):
                    notes[HELD] = None
                getattr(module, method)()
                notes[f"A sequence starts with reset() of the converted module: {function} does not reach it."] = None
                break
    return tuple(notes)


def states_of(module: nn.Module) -> list[torch.Tensor]:
    """Returns the states of a library neuron: the buffers that it does not save with its weights."""
    return [
        value
        for name, value in module._buffers.items()
        if value is not None and name in module._non_persistent_buffers_set
    ]
