"""A copy of the model as its library's own reset, or the user's, leaves it."""

from __future__ import annotations

import inspect
from collections.abc import Callable
from dataclasses import dataclass
from typing import Any

import torch
from torch import nn

from tracecompile.capture.copying.copies import independent_copy, tensor_attributes
from tracecompile.capture.copying.registries import registries_redirected

HELD = "The model held states of an earlier sequence; the converted module starts a new one."


@dataclass(frozen=True)
class Library:
    """How one library keeps and resets the states of its neurons.

    Attributes:
        base: Name of the class that has the reset.
        reset: Resets one neuron.
        states: Returns the states that a neuron holds.
    """

    base: str
    reset: Callable[[Any], None]
    states: Callable[[Any], list[Any]]


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
    "snntorch": Library("", _reset_and_empty, _unsaved_buffers),
    "spikingjelly": Library("MemoryModule", lambda neuron: neuron.reset(), lambda neuron: [*neuron._memories.values()]),
    "sinabs": Library("StatefulLayer", _empty_buffers, lambda neuron: [*neuron._buffers.values()]),
    "tracetorch": Library(
        "Layer",
        lambda neuron: neuron.zero_states(),
        lambda neuron: [getattr(neuron, name) for name in neuron._state_names],
    ),
}
"""By top-level package. Their classes are never imported: whoever owns a model of them has imported them."""


def _reset_own(copied: nn.Module) -> bool:
    """Calls the user's own ``reset`` where it clears what earlier calls have left; tells whether it did."""
    left = {name for name, value in tensor_attributes(copied) if bool(value.any())}
    if not left or not any(_own_reset(module) for module in copied.modules()):
        return False
    tried = independent_copy(copied)
    weights = [parameter.detach().clone() for parameter in tried.parameters()]
    held = dict(tensor_attributes(tried))
    try:
        _call_resets(tried)
    except (RuntimeError, TypeError, AttributeError, ValueError):
        return False
    now = dict(tensor_attributes(tried))
    cleared = any(name not in now or not torch.equal(now[name], held[name]) for name in left)
    # A reset that makes the weights anew is none of states.
    same = all(torch.equal(old, new) for old, new in zip(weights, tried.parameters(), strict=False))
    if cleared and same:
        _call_resets(copied)
    return cleared and same


def has_samples(value: torch.Tensor) -> bool:
    """Tells whether the rows of a tensor differ, as those of the samples of one batch do."""
    return value.dim() > 1 and len(value) > 1 and not bool((value == value[:1]).all())


def _own_reset(module: nn.Module) -> Callable[[], Any] | None:
    """Returns the method of a module by which its user resets its states."""
    for name in ("reset", "reset_state", "reset_states", "reset_mem"):
        method = getattr(type(module), name, None)
        if callable(method) and not type(module).__module__.startswith("torch."):
            required = [each for each in inspect.signature(method).parameters.values() if each.default is each.empty]
            if len(required) == 1 and required[0].kind is required[0].POSITIONAL_OR_KEYWORD:
                return getattr(module, name)  # type: ignore[no-any-return]
    return None


def _call_resets(copied: nn.Module) -> None:
    with torch.no_grad(), torch.random.fork_rng(), registries_redirected(copied):
        for module in copied.modules():
            method = None if library_of(module) is not None else _own_reset(module)
            if method is not None:
                method()


def library_of(module: nn.Module) -> Library | None:
    """Returns the library whose neuron a module is, None for any other module."""
    for base in type(module).__mro__:
        library = LIBRARIES.get(base.__module__.partition(".")[0])
        if library is not None and (base.__name__ == library.base if library.base else hasattr(module, "reset_mem")):
            return library
    return None


def start_afresh(copied: nn.Module) -> tuple[str, ...]:
    """Resets the neurons of a copy, at any depth; returns what the report has to say about it.

    A network that ran before conversion starts a new sequence once it is converted, as it does after ``reset``.
    """
    notes: dict[str, None] = {HELD: None} if _reset_own(copied) else {}
    for module in copied.modules():
        library = library_of(module)
        if library is None:
            continue
        if any(isinstance(value, torch.Tensor) and bool(value.any()) for value in library.states(module)):
            notes[HELD] = None
        library.reset(module)
    return tuple(notes)
