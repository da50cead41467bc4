"""Values of all time steps in as little memory as they need: spikes as bits, small whole numbers as bytes."""

from __future__ import annotations

import sys
from typing import Any

import torch
from torch import Tensor

MOST = 255
"""The largest number in a byte."""
EIGHT = 8


class Packed:
    """A tensor that takes as little memory as its values need; ``unpacked`` gives it back, bit for bit.

    Attributes:
        device: Where it is.
    """

    def __init__(self, value: Tensor) -> None:
        """Takes a tensor.

        Args:
            value: Zeros and ones become bits, whole numbers up to 255 bytes; anything else is kept as it is.
        """
        self.dtype, self.device = value.dtype, value.device
        # In the order of memory: what is computed of it once more adds up in that order.
        strides = value.stride()
        self.order = sorted(range(value.dim()), key=lambda axis: (-strides[axis], axis))
        self.bits, self.data = False, value.detach().permute(self.order)
        self.shape: torch.Size = self.data.shape
        if value.is_complex() or not value.numel():
            return
        if (spikes := _spikes(self.data)) is not None:
            self.bits, self.data = True, _bits(spikes)
            return
        small = self.data.clamp(0, MOST).to(torch.uint8)
        if not _same_bits(small.to(self.dtype), self.data):
            is_part = self.data.untyped_storage().nbytes() > self.data.numel() * self.data.element_size()
            self.data = self.data.clone(memory_format=torch.contiguous_format) if is_part else self.data
            return
        self.data = small.flatten()

    @property
    def nbytes(self) -> int:
        """How much memory it takes."""
        return self.data.numel() * self.data.element_size()

    def unpack(self) -> Tensor:
        """Returns the tensor."""
        values = _of_bits(self.data, self.dtype)[: self.shape.numel()] if self.bits else self.data
        back = sorted(range(len(self.order)), key=self.order.__getitem__)
        return values.to(self.dtype).reshape(self.shape).permute(back)


def unpacked(value: Any) -> Any:
    """Returns a packed tensor as it was, and anything else as it is."""
    return value.unpack() if isinstance(value, Packed) else value


def _spikes(value: Tensor) -> Tensor | None:
    """Returns where a tensor of zeros and ones has ones; None for any other tensor, one with a negative zero too."""
    if value.dtype == torch.bool:
        return value
    # Compared as they lie in memory, where there is but one zero.
    whole = value.view(_WHOLE[value.element_size()]) if value.is_floating_point() else value
    one = torch.ones((), dtype=value.dtype, device=value.device)
    ones = whole == one.view(whole.dtype)
    return ones if torch.equal(whole != 0, ones) else None


_WHOLE = {1: torch.uint8, 2: torch.int16, 4: torch.int32, 8: torch.int64}
"""Whole numbers by their size in bytes."""


def _same_bits(one: Tensor, other: Tensor) -> bool:
    """Tells whether two tensors are alike, the sign of a zero included."""
    if not torch.equal(one, other):
        return False
    return not other.is_floating_point() or not bool(torch.signbit(other).any())


_GATHER = 0x0102040810204080
"""Eight bytes of zeros and ones, times this number, have the eight in their highest byte: the first as its lowest bit
on a machine whose lowest byte comes first, and as its highest on another."""


def _bits(spikes: Tensor) -> Tensor:
    """Returns a byte for every eight truths."""
    flat = torch.nn.functional.pad(spikes.flatten().view(torch.uint8), (0, (-spikes.numel()) % EIGHT))
    return ((flat.view(torch.int64) * _GATHER) >> 56).to(torch.uint8)


def _of_bits(packed: Tensor, dtype: torch.dtype) -> Tensor:
    """Returns eight zeros and ones for every byte."""
    every = torch.arange(256, dtype=torch.uint8, device=packed.device)
    places = torch.tensor([1 << place for place in _places()], dtype=torch.uint8, device=packed.device)
    table = every[:, None].bitwise_and(places).ne(0).to(dtype)
    return table.index_select(0, packed.int()).flatten()


def _places() -> range:
    """Returns which bit of a byte each of its eight truths is."""
    return range(EIGHT) if sys.byteorder == "little" else range(EIGHT - 1, -1, -1)
