"""What one forward pass leaves in memory for backward, counted from outside: nothing has to declare what it keeps."""

from __future__ import annotations

import gc
import weakref
from collections.abc import Callable, Iterable

import torch
from torch import Tensor


class _Saved:
    """Stands for one tensor in the autograd graph; it lives as long as the graph's hold on the tensor."""

    def __init__(self, tensor: Tensor) -> None:
        self.tensor = tensor


def count_held(forward: Callable[[], Tensor]) -> int:
    """Runs a forward pass and counts the bytes that it leaves behind.

    Counted are the distinct storages that came into being meanwhile and are still alive afterwards, held by the
    autograd graph or by any Python object: recorded statistics, states, caches and the result itself. What was there
    before (parameters, inputs) is not counted, nor what was saved and let go again on the way.

    Args:
        forward: Returns the loss, without calling backward.

    Returns:
        The number of bytes.
    """
    gc.collect()
    # The storages themselves are kept, so that none of their addresses can be given to a new one.
    before = {_key(tensor): tensor.untyped_storage() for tensor in _tensors_alive()}
    saved: list[weakref.ref[_Saved]] = []

    def pack(tensor: Tensor) -> _Saved:
        holder = _Saved(tensor)
        saved.append(weakref.ref(holder))
        return holder

    with torch.autograd.graph.saved_tensors_hooks(pack, lambda holder: holder.tensor):
        loss = forward()
    gc.collect()
    in_graph = [holder.tensor for reference in saved if (holder := reference()) is not None]
    alive = (*_with_memory(in_graph), *_tensors_alive())
    after = {_key(tensor): tensor.untyped_storage().nbytes() for tensor in alive}
    del loss
    return sum(size for key, size in after.items() if key not in before)


def _tensors_alive() -> Iterable[Tensor]:
    return _with_memory([value for value in gc.get_objects() if issubclass(type(value), Tensor)])


def _with_memory(tensors: Iterable[Tensor]) -> list[Tensor]:
    """Leaves out the stand-ins of a compiler, which say that they are on a device, and have no memory there."""
    strided = [tensor for tensor in tensors if tensor.layout == torch.strided]
    return [tensor for tensor in strided if tensor.untyped_storage().device.type != "meta"]


def _key(tensor: Tensor) -> int:
    return int(tensor.untyped_storage()._cdata)
