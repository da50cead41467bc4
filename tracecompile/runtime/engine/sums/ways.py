"""The two ways in which a product is a sum over spikes: these are the left matrix, or the right one.

Those of a layer's input are the left one of its product, and the right one of the gradient of its weights.
"""

from __future__ import annotations

from abc import ABC, abstractmethod

import torch
from torch import Tensor

from tracecompile.runtime.engine.sums.build import Library

PITCH = 16
"""The rows of weights are as long as a multiple of this: the most columns that ``sums.cpp`` takes at once."""


class Way(ABC):
    """How one product is computed."""

    @abstractmethod
    def spikes(self, left: Tensor, right: Tensor) -> Tensor:
        """Returns the matrix that is mostly zeros."""

    @abstractmethod
    def gathers(self, library: Library, spikes: Tensor, block: int, most: int) -> bool:
        """Looks for what is not zero among spikes; tells whether that is at most ``most``.

        Args:
            library: Keeps it.
            spikes: The matrix.
            block: Length of the blocks in which is added up.
            most: How many there may be.
        """

    @abstractmethod
    def weights(self, library: Library, left: Tensor, right: Tensor) -> Tensor | None:
        """Returns the other matrix as it is added up; None where it is not finite: zero times that is not zero."""

    @abstractmethod
    def added(self, library: Library, weights: Tensor, first: Tensor | None, block: int, out: Tensor) -> None:
        """Writes the product of what is gathered and weights, added to ``first`` where that is given."""


class LeftSpikes(Way):
    """Spikes (rows, depth) times weights (depth, width)."""

    def spikes(self, left: Tensor, right: Tensor) -> Tensor:
        """See ``Way``."""
        return left

    def gathers(self, library: Library, spikes: Tensor, block: int, most: int) -> bool:
        """See ``Way``."""
        found: int = library.gather(spikes.data_ptr(), spikes.stride(0), *spikes.shape, block, most, _threads())
        return found <= most

    def weights(self, library: Library, left: Tensor, right: Tensor) -> Tensor | None:
        """See ``Way``."""
        return laid_out(library, right)

    def added(self, library: Library, weights: Tensor, first: Tensor | None, block: int, out: Tensor) -> None:
        """See ``Way``."""
        _add(library, weights, first, block, out)


class RightSpikes(Way):
    """Signals (rows, depth), column by column in memory, times spikes (depth, width): added up turned round.

    What it needs beside the result is kept: memory that is handed out anew, page by page, takes as long as the sums.
    """

    def __init__(self) -> None:
        """Keeps nothing yet."""
        self._rooms: dict[tuple[str, int, int], Tensor] = {}

    def forget(self) -> None:
        """Gives back what is kept."""
        self._rooms.clear()

    def spikes(self, left: Tensor, right: Tensor) -> Tensor:
        """See ``Way``."""
        return right

    def gathers(self, library: Library, spikes: Tensor, block: int, most: int) -> bool:
        """See ``Way``."""
        sizes = (*spikes.shape[::-1], block, most, _threads())
        found: int = library.gather_turned(spikes.data_ptr(), spikes.stride(0), *sizes)
        return found <= most

    def weights(self, library: Library, left: Tensor, right: Tensor) -> Tensor | None:
        """See ``Way``."""
        depth, width = left.shape[::-1]
        return laid_out(library, left.t(), self._room(left, "signals", depth, -(-width // PITCH) * PITCH))

    def added(self, library: Library, weights: Tensor, first: Tensor | None, block: int, out: Tensor) -> None:
        """See ``Way``."""
        assert first is None
        turned = self._room(out, "turned", *out.shape[::-1])
        _add(library, weights, None, block, turned)
        library.lay_out(turned.data_ptr(), 1, out.shape[0], out.data_ptr(), out.stride(0), *out.shape, _threads())

    def _room(self, like: Tensor, name: str, rows: int, columns: int) -> Tensor:
        key = (name, rows, columns)
        if key not in self._rooms:
            self._rooms[key] = like.new_empty(rows, columns)
        return self._rooms[key]


def laid_out(library: Library, matrix: Tensor, room: Tensor | None = None) -> Tensor | None:
    """Returns a matrix row by row, with zeros behind every row, in ``room``; None where it is not finite."""
    depth, width = matrix.shape
    found = matrix.new_empty(depth, -(-width // PITCH) * PITCH) if room is None else room
    sizes = (found.stride(0), depth, width, _threads())
    return found if library.lay_out(matrix.data_ptr(), *matrix.stride(), found.data_ptr(), *sizes) else None


def _add(library: Library, weights: Tensor, first: Tensor | None, block: int, out: Tensor) -> None:
    start = None if first is None else first.data_ptr()
    sizes = (out.shape[0], weights.shape[0], out.shape[1], block, _threads())
    library.add(weights.data_ptr(), weights.stride(0), start, out.data_ptr(), *sizes)


def _threads() -> int:
    return torch.get_num_threads()
