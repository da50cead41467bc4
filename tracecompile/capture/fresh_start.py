"""A copy of the model as its library's own reset leaves it."""

from __future__ import annotations

import torch
from torch import nn

RESETS = {"snntorch": "reset_mem"}
"""Name of the method that resets one neuron, by the top-level package of its library. The classes are never imported:
whoever owns a model has imported them."""


def start_afresh(copied: nn.Module) -> bool:
    """Resets the library neurons of a copy, at any depth; tells whether any of them held more than zeros.

    A network that ran before conversion starts a new sequence once it is converted, as it does after ``reset``.
    """
    held = False
    for module in copied.modules():
        for base in type(module).__mro__:
            name = RESETS.get(base.__module__.partition(".")[0])
            if name is not None and callable(getattr(module, name, None)):
                held |= any(bool(value.any()) for value in states_of(module))
                getattr(module, name)()
                break
    return held


def states_of(module: nn.Module) -> list[torch.Tensor]:
    """Returns the states of a library neuron: the buffers that it does not save with its weights."""
    return [
        value
        for name, value in module._buffers.items()
        if value is not None and name in module._non_persistent_buffers_set
    ]
