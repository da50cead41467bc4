"""In which order torch's product of two matrices adds up, found out by trying.

A library of products cuts long rows into blocks, and nowhere says which. What is added up in the same order rounds
alike, bit by bit: so products of random numbers tell, each of the many sums of which would else come out otherwise.
"""

from __future__ import annotations

import itertools
from collections.abc import Callable, Iterator

import torch
from torch import Tensor

Summed = Callable[[Tensor, Tensor, Tensor | None, int], Tensor | None]
"""(left, right, what sums begin with, length of a block) to the product; None where it cannot be added up."""
USUAL = (192, 384, 256, 128, 320, 336, 352, 512)
"""Lengths of blocks that libraries have."""
EVIDENCE = 64
"""Sums of every row and of every column of a product that have to come out alike: one alone may do so by chance."""
FEWEST = 8
"""Rows or columns of which there are fewer are not tried: they would have to be, too often."""
FEW = 32
"""Rows of the left matrix that are looked at before all of them."""


def block_of(summed: Summed, left: Tensor, right: Tensor, first: bool) -> int | None:
    """Returns the length of the blocks in which torch adds up, or None where that is none of those tried.

    Args:
        summed: The product added up in blocks.
        left, right: Matrices as they lie in memory; their values do not matter.
        first: Whether sums begin with what is given.
    """
    smallest = min(left.shape[0], right.shape[1])
    if smallest < FEWEST:
        return None
    for length in _lengths(left.shape[1]):
        drawn = torch.Generator().manual_seed(0)
        samples = (_sample(left, right, first, drawn) for _ in range(-(-EVIDENCE // smallest)))
        # A few rows tell most of what adds up otherwise.
        parts = (((one[:FEW], other, start), (one, other, start)) for one, other, start in samples)
        if all(_alike(summed, *part, length) for part in itertools.chain.from_iterable(parts)):
            return length
    return None


def _sample(left: Tensor, right: Tensor, first: bool, drawn: torch.Generator) -> tuple[Tensor, Tensor, Tensor | None]:
    start = torch.randn(right.shape[1], generator=drawn) if first else None
    return _like(left, drawn), _like(right, drawn), start


def _like(matrix: Tensor, drawn: torch.Generator) -> Tensor:
    values = torch.randn(matrix.shape, generator=drawn)
    return values.t().contiguous().t() if matrix.stride(0) == 1 else values


def _alike(summed: Summed, left: Tensor, right: Tensor, first: Tensor | None, length: int) -> bool:
    with torch.autocast("cpu", enabled=False):
        wanted = left @ right if first is None else torch.addmm(first, left, right)
    found = summed(left, right, first, length)
    return found is not None and torch.equal(found, wanted)


def _lengths(depth: int) -> Iterator[int]:
    """Yields lengths of blocks, each once: the whole row, usual ones, and parts that are as long as each other."""
    parts = (-(-depth // count) for count in (2, 3, 4))
    yield from dict.fromkeys((depth, *(length for length in (*parts, *USUAL) if length < depth)))
