"""Products of float32 matrices on the processor: those of torch, and the same bit by bit, faster, of spikes."""

from __future__ import annotations

from collections.abc import Iterable
from typing import Any

import torch
from torch import Tensor, nn

from tracecompile.runtime.engine.inductor import Unwritten, unwarned
from tracecompile.runtime.engine.sums.build import Library, library
from tracecompile.runtime.engine.sums.order import block_of
from tracecompile.runtime.engine.sums.ways import LeftSpikes, RightSpikes, Way

LEAST = 2**20
"""Multiplications of a product from which looking for zeros pays."""
MOST = 4
"""At most one in so many values of a matrix of spikes is other than zero: products of vectors win where more are."""
ONEDNN: Any = torch.backends.mkldnn
PLAIN = (Tensor, nn.Parameter)


class Products:
    """Products with weights that stand still for a while.

    Attributes:
        refused: Why there are none but torch's; None where there are, or it is not known yet.
        count: Products that were sums over spikes.
    """

    def __init__(self) -> None:
        """Compiles nothing yet."""
        self.refused: str | None = None
        self.count = 0
        self._left, self._right = LeftSpikes(), RightSpikes()
        self._library: Library | None = None
        self._standing: dict[int, tuple[Tensor, int]] = {}
        self._laid_out: dict[tuple[Any, ...], Tensor | None] = {}
        self._blocks: dict[tuple[Any, ...], int | None] = {}

    def forget(self) -> None:
        """Says that weights may be others from now on, and gives back what is kept of them."""
        self._right.forget()
        self._standing.clear()
        self._laid_out.clear()

    def stand(self, values: Iterable[Any]) -> bool:
        """Says that some values do not change until ``forget``; tells whether there are weights among them."""
        found = False
        for value in values:
            if type(value) in PLAIN and value.ndim == 2 and not value.is_inference() and _is_real(value):
                found = True
                self._standing[value.data_ptr()] = (value, value._version)
        return found

    def mm(self, left: Tensor, right: Tensor, *, out: Tensor | None = None) -> Tensor:
        """Returns left @ right, as ``torch.mm`` does."""
        found = self._summed(left, right, None, out)
        return torch.mm(left, right, out=out) if found is None else found

    def addmm(self, first: Tensor, left: Tensor, right: Tensor, *, out: Tensor | None = None, **factors: Any) -> Tensor:
        """Returns beta * first + alpha * left @ right, as ``torch.addmm`` does."""
        plain = all(factor == 1 for factor in factors.values()) and _is_row(first, right)
        found = self._summed(left, right, first, out) if plain else None
        return torch.addmm(first, left, right, **factors, out=out) if found is None else found

    def _summed(self, left: Tensor, right: Tensor, first: Tensor | None, out: Tensor | None) -> Tensor | None:
        """Returns a product as a sum over what is not zero; None where torch's is to be taken."""
        (rows, depth), width = left.shape, right.shape[1]
        if rows * depth * width < LEAST or (way := self._way(left, right, first)) is None:
            return None
        if out is not None and not (out.is_contiguous() and _is_real(out)):
            return None
        if (loaded := self._ready()) is None or (block := self._block(way, left, right, first)) is None:
            return None
        spikes = way.spikes(left, right)
        if not way.gathers(loaded, spikes, block, spikes.numel() // MOST):
            return None
        weights = self._weights(way, loaded, left, right)
        if weights is None:
            return None
        found = left.new_empty(rows, width) if out is None else out
        way.added(loaded, weights, first, block, found)
        self.count += 1
        return found

    def _way(self, left: Tensor, right: Tensor, first: Tensor | None) -> Way | None:
        if self.stands(right):
            return self._left if _is_real(left) and left.stride(1) == 1 else None
        turned = first is None and left.stride(0) == 1 and right.stride(1) == 1
        return self._right if turned and _is_real(left) and _is_real(right) else None

    def _block(self, way: Way, left: Tensor, right: Tensor, first: Tensor | None) -> int | None:
        """Returns the length of the blocks in which torch adds up such a product, found out once."""
        set_to = torch.get_num_threads(), torch.get_float32_matmul_precision(), ONEDNN.matmul.fp32_precision
        key = (way, left.shape, right.shape, right.stride(), first is None, set_to)
        if key not in self._blocks:

            def summed(one: Tensor, other: Tensor, start: Tensor | None, block: int) -> Tensor | None:
                loaded = self._ready()
                assert loaded is not None
                weights = way.weights(loaded, one, other)
                spikes = way.spikes(one, other)
                if weights is None or not way.gathers(loaded, spikes, block, spikes.numel()):
                    return None
                found = one.new_empty(one.shape[0], other.shape[1])
                way.added(loaded, weights, start, block, found)
                return found

            self._blocks[key] = block_of(summed, left, right, first is not None)
        return self._blocks[key]

    def stands(self, right: Tensor) -> bool:
        """Tells whether a matrix is one that stands still: what is laid out would else be an earlier one."""
        standing = self._standing.get(right.data_ptr())
        return standing is not None and standing[0]._version == standing[1] and _is_real(right)

    def _weights(self, way: Way, library: Library, left: Tensor, right: Tensor) -> Tensor | None:
        if way is self._right:  # they are signals
            return way.weights(library, left, right)
        place = right.data_ptr()
        # The version of what stands: compiled code reads it through views that have none of their own.
        key = (place, self._standing[place][1], right.shape, right.stride())
        if key not in self._laid_out:
            self._laid_out[key] = way.weights(library, left, right)
        return self._laid_out[key]

    def _ready(self) -> Library | None:
        """Returns the library, which the first to ask waits for."""
        if self._library is None and self.refused is None:
            try:
                with unwarned():
                    self._library = library()
            except Unwritten as reason:
                self.refused = str(reason)
        return self._library


def _is_real(value: Tensor) -> bool:
    return value.dtype == torch.float32 and value.is_cpu


def _is_row(first: Tensor, right: Tensor) -> bool:
    """Tells whether sums begin with one value for every column, on the processor, one after another in memory."""
    return first.shape == right.shape[1:] and _is_real(first) and first.is_contiguous()
