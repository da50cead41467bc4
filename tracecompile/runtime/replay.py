"""The circumstances of steps that are run again: random numbers drawn as they were, autocast, and buffers put back."""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from contextlib import ExitStack, contextmanager

import torch
from torch import Tensor, nn


def random_states() -> list[Tensor]:
    """Returns the states of torch's generators, that of the CPU first."""
    return [torch.get_rng_state(), *(torch.cuda.get_rng_state_all() if torch.cuda.is_initialized() else [])]


@contextmanager
def drawn_again(states: Sequence[Tensor]) -> Iterator[None]:
    """Sets torch's generators to earlier states while the context is open, and then back; nothing where none are."""
    if not states:
        yield
        return
    present = random_states()
    set_random_states(states)
    try:
        yield
    finally:
        set_random_states(present)


Autocast = Sequence[tuple[str, bool, torch.dtype]]
"""For each kind of device whether autocast is on, and to what."""


def autocast_states(device: torch.device | None) -> Autocast:
    """Returns how autocast is set: for the CPU, and for a device."""
    kinds = {"cpu"} | ({device.type} if device is not None else set())
    return [(kind, torch.is_autocast_enabled(kind), torch.get_autocast_dtype(kind)) for kind in sorted(kinds)]


@contextmanager
def autocast_as(states: Autocast) -> Iterator[None]:
    """Sets autocast as it was while the context is open."""
    with ExitStack() as stack:
        for device, enabled, dtype in states:
            stack.enter_context(torch.autocast(device, dtype=dtype, enabled=enabled))
        yield


@contextmanager
def buffers_kept(root: nn.Module) -> Iterator[None]:
    """Puts back the buffers that steps move, such as running statistics: they were counted the first time."""
    kept = [(buffer, buffer.clone()) for buffer in root.buffers() if not buffer.is_inference()]
    try:
        yield
    finally:
        for buffer, value in kept:
            # Batch normalisation moves its statistics without counting a version, and its derivative would miss one.
            # To look on a device whether they have moved would be to wait for it.
            if _may_have_moved(buffer) if buffer.is_cuda else not torch.equal(buffer, value):
                buffer.data.copy_(value)


def _may_have_moved(buffer: Tensor) -> bool:
    """Tells whether a buffer can be written to: not where several of its elements are one place of memory."""
    return all(stride or size < 2 for stride, size in zip(buffer.stride(), buffer.shape, strict=True))


def set_random_states(states: Sequence[Tensor]) -> None:
    """Sets torch's generators to what ``random_states`` has returned."""
    torch.set_rng_state(states[0])
    if states[1:]:
        torch.cuda.set_rng_state_all(list(states[1:]))
