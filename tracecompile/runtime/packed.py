"""Values of all time steps in as little memory as they need: spikes as bits, small whole numbers as bytes."""

from __future__ import annotations

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
        small = self.data.clamp(0, MOST).to(torch.uint8)
        if not _same_bits(small.to(self.dtype), self.data):
            is_part = self.data.untyped_storage().nbytes() > self.data.numel() * self.data.element_size()
            self.data = self.data.clone(memory_format=torch.contiguous_format) if is_part else self.data
            return
        self.bits = bool((small <= 1).all())
        self.data = _bits(small) if self.bits else small.flatten()

    @property
    def nbytes(self) -> int:
        """How much memory it takes."""
        return self.data.numel() * self.data.element_size()

    def unpack(self) -> Tensor:
        """Returns the tensor."""
        values = _of_bits(self.data)[: self.shape.numel()] if self.bits else self.data
        back = sorted(range(len(self.order)), key=self.order.__getitem__)
        return values.to(self.dtype).reshape(self.shape).permute(back)


def unpacked(value: Any) -> Any:
    """Returns a packed tensor as it was, and anything else as it is."""
    return value.unpack() if isinstance(value, Packed) else value


def _same_bits(one: Tensor, other: Tensor) -> bool:
    """Tells whether two tensors are alike, the sign of a zero included."""
    if not torch.equal(one, other):
        return False
    return not other.is_floating_point() or not bool(torch.signbit(other).any())


def _places(device: torch.device) -> Tensor:
    return torch.tensor([1 << place for place in range(EIGHT)], dtype=torch.uint8, device=device)


def _bits(small: Tensor) -> Tensor:
    """Returns a byte for every eight zeros and ones."""
    flat = torch.nn.functional.pad(small.flatten(), (0, (-small.numel()) % EIGHT))
    return (flat.view(-1, EIGHT) * _places(small.device)).sum(1, dtype=torch.uint8)


def _of_bits(packed: Tensor) -> Tensor:
    return packed[:, None].bitwise_and(_places(packed.device)).ne(0).to(torch.uint8).flatten()
