"""How much memory training takes: what autograd keeps, what a converted module keeps, the peak of the process.

Bytes are counted per storage, so two views of one tensor count once.
"""

from __future__ import annotations

import os
import sys
from collections.abc import Iterable, Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import Any, Protocol

import torch
from torch import Tensor
from torch.utils import _pytree as pytree

from tracecompile.runtime.layout import LAYOUT


class HasSnapshot(Protocol):
    """Anything whose live states and traces can be listed; a ``TracedModule`` is one."""

    def snapshot(self) -> dict[str, Any]:
        """Returns the live states and traces."""
        ...


class SavedBytes:
    """What autograd holds for backward; see ``saved_bytes``.

    Attributes:
        tensors: Number of times that a tensor was saved, repetitions and excluded ones included.
    """

    def __init__(self, exclude: Iterable[Tensor] = ()) -> None:
        self.tensors = 0
        # A storage is known by its address, which is unique only while the storage lives: hence the references.
        self._excluded = {_key(tensor): tensor.untyped_storage() for tensor in exclude}
        self._held: dict[int, tuple[int, int]] = {}
        self._final: int | None = None

    @property
    def bytes(self) -> int:
        """Sum of the sizes of the distinct storages that are held now, or were when the block ended."""
        return self._final if self._final is not None else sum(size for _, size in self._held.values())

    def add(self, tensor: Tensor) -> int:
        """Counts one saved tensor; returns what to hand to ``remove`` when it is let go."""
        self.tensors += 1
        key = _key(tensor)
        if key not in self._excluded:
            times, _ = self._held.get(key, (0, 0))
            self._held[key] = (times + 1, tensor.untyped_storage().nbytes())
        return key

    def remove(self, key: int) -> None:
        """Takes back one ``add``."""
        times, size = self._held.pop(key, (0, 0))
        if times > 1:
            self._held[key] = (times - 1, size)

    def finish(self) -> None:
        """Fixes the count and lets go of the excluded storages."""
        self._final = self.bytes
        self._excluded.clear()


class _Held:
    """A tensor in the hands of autograd; counted until autograd lets go of it."""

    def __init__(self, saved: SavedBytes, tensor: Tensor) -> None:
        # Detached: an operation that saves its own result would otherwise be held by what it holds, for ever.
        self.saved, self.tensor, self.key = saved, tensor.detach(), saved.add(tensor)

    def __del__(self) -> None:
        self.saved.remove(self.key)


@contextmanager
def saved_bytes(exclude: Iterable[Tensor] = ()) -> Iterator[SavedBytes]:
    """Counts the bytes that autograd holds for backward at the end of the block.

    It sees what PyTorch's own operations save and what a custom ``autograd.Function`` passes to
    ``save_for_backward``; it cannot see tensors that a Function stores as plain attributes of its context. What is
    saved and let go within the block, such as the local derivatives of one time step, does not count at its end.

    Args:
        exclude: Tensors whose storages do not count, such as the parameters and the inputs, which are held anyway.

    Yields:
        The counter; its ``bytes`` may be read inside the block and after it.

    Example:
        >>> with saved_bytes(exclude=[*net.parameters(), x]) as saved:
        ...     loss = net(x).mean()
        >>> saved.bytes
    """
    saved = SavedBytes(exclude)

    def pack(tensor: Tensor) -> _Held:
        return _Held(saved, tensor)

    def unpack(held: _Held) -> Tensor:
        return held.tensor

    try:
        with torch.autograd.graph.saved_tensors_hooks(pack, unpack):
            yield saved
    finally:
        saved.finish()


def live_state_bytes(net: HasSnapshot) -> int:
    """Returns the bytes of the states and traces that a converted module keeps between two time steps.

    Args:
        net: A converted module. Before its first call it keeps nothing.

    Returns:
        Sum over the distinct storages behind the tensors of ``net.snapshot()``; a snapshot that is a view counts with
        the whole storage that it keeps alive.
    """
    counter = SavedBytes()
    held = {name: value for name, value in net.snapshot().items() if name != LAYOUT}
    for leaf in pytree.tree_leaves(held):
        if isinstance(leaf, Tensor):
            counter.add(leaf)
    return counter.bytes


def peak_resident_bytes() -> int:
    """Returns the largest amount of main memory, in bytes, that this process has held since it started.

    It only ever grows: to compare two programs, run each in a process of its own.

    Raises:
        RuntimeError: On a platform without the ``resource`` module (Windows).
    """
    if sys.platform == "linux":
        # Not getrusage: there a new process starts with the peak of the one that started it.
        for line in Path("/proc/self/status").read_text(encoding="utf-8").splitlines():
            if line.startswith("VmHWM:"):
                return int(line.split()[1]) * 1024
    try:
        import resource
    except ImportError as error:
        raise RuntimeError("The peak of resident memory can only be read on Linux and macOS.") from error
    peak = resource.getrusage(resource.RUSAGE_SELF).ru_maxrss
    return peak if sys.platform == "darwin" else peak * 1024  # kilobytes everywhere but on macOS


def memory_limit(device: torch.device | None = None) -> int:
    """Returns half of the memory that is free now, in bytes: of a GPU, or of the machine."""
    if device is not None and device.type == "cuda":
        return torch.cuda.mem_get_info(device)[0] // 2
    return os.sysconf("SC_AVPHYS_PAGES") * os.sysconf("SC_PAGE_SIZE") // 2


def _key(tensor: Tensor) -> int:
    return int(tensor.untyped_storage()._cdata)
