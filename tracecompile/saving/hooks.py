"""Gradient hooks of parameters, written out: a function of a gradient is a graph like any other.

A library may keep weights apart by a hook (no neuron feeds itself): a network that is loaded has to train on with it.
"""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

import torch
from torch import Tensor, fx

from tracecompile.errors import InvalidInput
from tracecompile.saving.tracing import by_elements, by_name
from tracecompile.saving.values import Json, Reader, Writer

TRIALS = 3
"""Gradients on which a hook and its graph are compared."""


def write_hooks(writer: Writer, name: str, parameter: Tensor) -> Json:
    """Returns the hooks of a parameter, in the order in which they are called.

    Raises:
        InvalidInput: One cannot be written out.
    """
    if getattr(parameter, "_post_accumulate_grad_hooks", None):
        raise _refusal(name)
    hooks = getattr(parameter, "_backward_hooks", None) or {}
    return [writer.write(_written(hook, name, parameter)) for hook in hooks.values()]


def read_hooks(reader: Reader, written: Json, parameter: Tensor) -> None:
    """Puts hooks on a parameter."""
    for entry in written:
        parameter.register_hook(reader.read(entry))


def _written(hook: Callable[..., Any], name: str, parameter: Tensor) -> fx.GraphModule:
    if isinstance(hook, fx.GraphModule):
        return hook
    for write in (by_name, by_elements):
        try:
            graph = write(hook, ["g"], parameter.shape)
            if all(_agree(hook, graph, parameter, seed) for seed in range(TRIALS)):
                return graph
        except Exception:  # the user's own code is run by a tracer here: anything may come out of it
            continue
    raise _refusal(name)


def _agree(hook: Callable[..., Any], graph: fx.GraphModule, parameter: Tensor, seed: int) -> bool:
    generator = torch.Generator().manual_seed(seed)
    gradient = torch.randn(parameter.shape, generator=generator, dtype=parameter.dtype).to(parameter.device)
    expected, found = hook(gradient.clone()), graph(gradient.clone())
    if expected is None or found is None:
        return expected is found
    return torch.equal(expected, found)


def _refusal(name: str) -> InvalidInput:
    return InvalidInput(
        f"The parameter {name} has a gradient hook that cannot be written out: it is code of the program that runs.",
        "Remove it before save, and put it on again after load.",
    )
