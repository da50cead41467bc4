"""Random numbers drawn again as they were: what is random before a loop is not kept for a second pass."""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from contextlib import contextmanager

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


@contextmanager
def buffers_kept(root: nn.Module) -> Iterator[None]:
    """Puts back the buffers that steps move, such as running statistics: they were counted the first time."""
    kept = [(buffer, buffer.clone()) for buffer in root.buffers() if not buffer.is_inference()]
    try:
        yield
    finally:
        for buffer, value in kept:
            # Batch normalisation moves its statistics without counting a version, and its derivative would miss one.
            if not torch.equal(buffer, value):
                buffer.data.copy_(value)


def set_random_states(states: Sequence[Tensor]) -> None:
    """Sets torch's generators to what ``random_states`` has returned."""
    torch.set_rng_state(states[0])
    if states[1:]:
        torch.cuda.set_rng_state_all(list(states[1:]))
