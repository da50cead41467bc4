"""In which order torch's product of two matrices adds up, found out by trying.

A library of products cuts long rows into blocks, and nowhere says which. What is added up in the same order rounds
alike, bit by bit: so products of random numbers tell, each of the many sums of which would else come out otherwise.
"""

from __future__ import annotations

from collections.abc import Callable, Iterator

import torch
from torch import Tensor

Summed = Callable[[Tensor, Tensor, Tensor | None, int], Tensor | None]
"""(left, right, first summands, length of a block) to the product; None where a right matrix is not finite."""
USUAL = (192, 384, 256, 128, 320, 336, 352, 512)
"""Lengths of blocks that libraries have."""
FEW = 32
"""Rows that are looked at before all of them."""


def block_of(summed: Summed, rows: int, right: Tensor, first: bool) -> int | None:
    """Returns the length of the blocks in which torch adds up, or None where that is none of those tried.

    Args:
        summed: The product added up in blocks.
        rows: Of the left matrix.
        right: A matrix as it is laid out; its values do not matter.
        first: Whether sums begin with what is given.
    """
    depth, width = right.shape
    given = torch.Generator().manual_seed(depth)
    left = torch.randn(rows, depth, generator=given)
    tried = torch.empty_strided(right.shape, right.stride()).copy_(torch.randn(depth, width, generator=given))
    start = torch.randn(width, generator=given) if first else None
    for length in _lengths(depth):
        if _alike(summed, left[:FEW], tried, start, length) and _alike(summed, left, tried, start, length):
            return length
    return None


def _alike(summed: Summed, left: Tensor, right: Tensor, first: Tensor | None, length: int) -> bool:
    wanted = left @ right if first is None else torch.addmm(first, left, right)
    found = summed(left, right, first, length)
    return found is not None and torch.equal(found, wanted)


def _lengths(depth: int) -> Iterator[int]:
    """Yields lengths of blocks, each once: the whole row, usual ones, and parts that are as long as each other."""
    parts = (-(-depth // count) for count in (2, 3, 4))
    yield from dict.fromkeys((depth, *(length for length in (*parts, *USUAL) if length < depth)))
