"""Products of float32 matrices on the processor: those of torch, and the same bit by bit, faster, of spikes."""

from __future__ import annotations

import contextlib
from collections.abc import Callable, Iterable, Iterator
from typing import Any

import torch
from torch import Tensor, nn
from torch.utils._python_dispatch import TorchDispatchMode

from tracecompile.runtime.engine.inductor import Unwritten
from tracecompile.runtime.engine.sums.build import Building, Library, build
from tracecompile.runtime.engine.sums.order import block_of

LEAST = 2**20
"""Multiplications of a product from which looking for zeros pays."""
MOST = 4
"""At most one in so many values of the left matrix may be other than zero: there products of vectors win."""
PLAIN = (Tensor, nn.Parameter)
ONEDNN: Any = torch.backends.mkldnn
LANES = 16
"""Columns that ``sums.cpp`` takes at once."""


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
        self._library: Library | Building | None = None
        self._standing: dict[int, tuple[Tensor, int]] = {}
        self._laid_out: dict[tuple[Any, ...], Tensor | None] = {}
        self._blocks: dict[tuple[Any, ...], int | None] = {}

    def begin(self) -> None:
        """Lets the compiler begin, in a process of its own."""
        if self._library is None and self.refused is None:
            try:
                self._library = build()
            except Unwritten as reason:
                self.refused = str(reason)

    def forget(self) -> None:
        """Says that weights may be others from now on."""
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

    @contextlib.contextmanager
    def taken(self) -> Iterator[None]:
        """Takes these products for those of torch while the context is open."""
        with _Instead(self):
            yield

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
        rows, depth = left.shape
        width = right.shape[1]
        if rows * depth * width < LEAST or not self._stands(right) or not _is_plain(left):
            return None
        if out is not None and not (out.is_contiguous() and _is_plain(out)):
            return None
        library = self._ready()
        if library is None:
            return None
        precision = torch.get_float32_matmul_precision(), ONEDNN.matmul.fp32_precision
        key = (rows, right.shape, right.stride(), first is None, torch.get_num_threads(), precision)
        if key not in self._blocks:
            self._blocks[key] = block_of(self._in_blocks, rows, right, first is not None)
        block = self._blocks[key]
        if block is None or not self._gathers(library, left, block, left.numel() // MOST):
            return None
        weights = self._weights(library, right)
        if weights is None:
            return None
        self.count += 1
        return self._added(library, left, weights, first, block, left.new_empty(rows, width) if out is None else out)

    def _in_blocks(self, left: Tensor, right: Tensor, first: Tensor | None, block: int) -> Tensor | None:
        """Returns the product of any two matrices; None where the right one is not finite."""
        library = self._ready()
        assert library is not None
        weights = _laid_out(library, right)
        if weights is None or not self._gathers(library, left, block, left.numel()):
            return None
        return self._added(library, left, weights, first, block, left.new_empty(left.shape[0], right.shape[1]))

    def _gathers(self, library: Library, left: Tensor, block: int, most: int) -> bool:
        rows, depth = left.shape
        threads = torch.get_num_threads()
        found: int = library.gather(left.data_ptr(), left.stride(0), rows, depth, block, most, threads)
        return found <= most

    def _added(
        self, library: Library, left: Tensor, weights: Tensor, first: Tensor | None, block: int, out: Tensor
    ) -> Tensor:
        start = None if first is None else first.data_ptr()
        sizes = (*left.shape, out.shape[1], block, torch.get_num_threads())
        library.add(weights.data_ptr(), weights.stride(0), start, out.data_ptr(), *sizes)
        return out

    def _stands(self, right: Tensor) -> bool:
        """Tells whether a matrix is one that stands still: what is laid out would else be an earlier one."""
        standing = self._standing.get(right.data_ptr())
        return standing is not None and standing[0]._version == standing[1] and _is_real(right)

    def _weights(self, library: Library, right: Tensor) -> Tensor | None:
        key = (right.data_ptr(), right.shape, right.stride())
        if key not in self._laid_out:
            self._laid_out[key] = _laid_out(library, right)
        return self._laid_out[key]

    def _ready(self) -> Library | None:
        self.begin()
        if isinstance(self._library, Building):
            try:
                self._library = self._library.finished()
            except Unwritten as reason:
                self.refused, self._library = str(reason), None
        return self._library


class _Instead(TorchDispatchMode):
    """Puts products in the places of torch's, however the model writes them."""

    def __init__(self, products: Products) -> None:
        super().__init__()
        aten = torch.ops.aten
        self.functions: dict[Any, Callable[..., Tensor]] = {
            aten.mm.default: products.mm,
            aten.addmm.default: products.addmm,
        }

    def __torch_dispatch__(self, function: Any, types: Any, given: Any = (), named: Any = None) -> Any:
        instead = self.functions.get(function) if all(type(value) in PLAIN for value in given) else None
        return function(*given, **(named or {})) if instead is None or named else instead(*given)


def _laid_out(library: Library, right: Tensor) -> Tensor | None:
    """Returns a matrix as ``sums.cpp`` takes it; None where it is not finite, and a product with zero is not zero."""
    depth, width = right.shape
    found = right.new_empty(depth, -(-width // LANES) * LANES)
    sizes = (found.stride(0), depth, width, torch.get_num_threads())
    return found if library.lay_out(right.data_ptr(), *right.stride(), found.data_ptr(), *sizes) else None


def _is_plain(value: Tensor) -> bool:
    """Tells whether a matrix lies row by row in memory."""
    return _is_real(value) and value.stride(1) == 1


def _is_real(value: Tensor) -> bool:
    return value.dtype == torch.float32 and value.is_cpu


def _is_row(first: Tensor, right: Tensor) -> bool:
    """Tells whether sums begin with one value for every column, on the processor, one after another in memory."""
    return first.shape == right.shape[1:] and _is_real(first) and first.is_contiguous()
