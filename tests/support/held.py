"""Bytes that a forward pass leaves behind, for backward or anywhere else."""

from __future__ import annotations

import gc
import weakref
from collections.abc import Iterator
from contextlib import contextmanager, suppress
from typing import Any

import torch
from torch import Tensor

from support.values import leaves


class _Kept:
    """A tensor in the hands of autograd."""

    def __init__(self, tensor: Tensor) -> None:
        self.tensor = tensor


class Held:
    """What autograd holds for backward, in distinct storages."""

    def __init__(self) -> None:
        self._kept: weakref.WeakSet[_Kept] = weakref.WeakSet()

    def pack(self, tensor: Tensor) -> _Kept:
        """Notes a tensor for as long as autograd holds it."""
        # Detached: an operation that saves its own result would be held by it, and hold it, for ever.
        kept = _Kept(tensor.detach())
        self._kept.add(kept)
        return kept

    def bytes(self, aside: Any) -> int:
        """Returns the bytes that are held now, the storages of some tensors aside."""
        spared = _storages(aside)
        sizes = _sizes(kept.tensor for kept in self._kept)
        return sum(size for address, size in sizes.items() if address not in spared)


@contextmanager
def held_for_backward() -> Iterator[Held]:
    """Counts what autograd saves in a block and does not let go."""
    held = Held()
    with torch.autograd.graph.saved_tensors_hooks(held.pack, lambda kept: kept.tensor):
        yield held


@contextmanager
def only_what_is_new() -> Iterator[None]:
    """Within it, ``live_bytes`` sees only the objects that are made there, and is fast."""
    gc.collect()
    gc.freeze()
    try:
        yield
    finally:
        gc.unfreeze()


def live_bytes(aside: Any) -> int:
    """Returns the bytes of all tensors that Python can reach, the storages of some aside."""
    gc.collect()
    found = []
    for thing in gc.get_objects():
        with suppress(Exception):  # objects that answer to isinstance with an import, or are half dead
            if isinstance(thing, Tensor):
                found.append(thing)
    spared = _storages(aside)
    return sum(size for address, size in _sizes(found).items() if address not in spared)


def _storages(value: Any) -> set[int]:
    return set(_sizes(leaves(value)))


def _sizes(tensors: Any) -> dict[int, int]:
    """Returns the bytes of storages, by their address."""
    sizes = {}
    for tensor in tensors:
        if tensor.layout == torch.strided:
            storage = tensor.untyped_storage()
            if storage.device.type != "meta":  # what torch's compiler has left of another test has no memory
                sizes[storage.data_ptr()] = storage.nbytes()
    return sizes
