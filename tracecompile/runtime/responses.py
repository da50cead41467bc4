"""Responses: how the mean outputs of each time bin answer to a constant current in each earlier one."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass

import torch
from torch import Tensor

from tracecompile.layers import Trace
from tracecompile.runtime.statistics import TraceBuffer, merged_weights
from tracecompile.runtime.tangents import Changes, Derivatives, Tangents, slots_merged


@dataclass
class Row:
    """The responses of one bin's outputs: sums over its steps, (slots, *shape), the first slot being bin ``first``."""

    first: int
    sums: Tensor

    def add(self, change: Tensor, decay: float | None) -> None:
        """Adds one step."""
        if decay is not None:
            self.sums.mul_(decay)
        # A step later in the bin may have lost old slots, never gained any.
        self.sums[self.sums.shape[0] - change.shape[0] :].add_(change)

    def merged(self, other: Row | None, binned: bool) -> Row:
        """Returns the row of this bin and the next together."""
        rows = [self] if other is None else [self, other]
        if not binned:
            return Row(0, self.sums if other is None else self.sums + other.sums)
        parts = [(row.first // 2, slots_merged(row.sums, row.first)) for row in rows]
        first = min(start for start, _ in parts)
        size = max(start + part.shape[0] for start, part in parts) - first
        total = torch.zeros((size, *self.sums.shape[1:]), dtype=self.sums.dtype, device=self.sums.device)
        for start, part in parts:
            total[start - first : start - first + part.shape[0]] += part
        return Row(first, total)


class Responses:
    """The responses of one core: M[now, c] += J_ys e[c] + J_yI [c is now], summed over the steps of each bin.

    Attributes:
        tangents: What they are made from.
        rows: By (output, variable), by bin.
        weights: Steps in each bin, decayed where the sums are.
        profiles: Mean over the neurons of the response, by (output, variable), and of the gain within a step, by cell
            of time; empty where nobody wants them.
    """

    def __init__(self, tangents: Tangents, bins: int, decay: float | None) -> None:
        """Makes empty statistics.

        Args:
            tangents: Of the core.
            bins: K.
            decay: Decay of the sums, as for the traces of the layer.
        """
        self.tangents = tangents
        self.decay = decay
        self.rows: dict[tuple[str, str], dict[int, Row]] = {}
        self.weights = [0.0] * bins
        self.profiles: dict[tuple[str, str], TraceBuffer] = {}

    def add(self, changes: Changes, index: int) -> None:
        """Adds one step of the bin ``index``."""
        if self.decay is not None:
            self.weights[index] *= self.decay
        self.weights[index] += 1.0
        for key, change in changes.items():
            rows = self.rows.setdefault(key, {})
            if index not in rows:
                first = self.tangents.first if self.tangents.is_binned(key[1]) else 0
                rows[index] = Row(first, torch.zeros_like(change))
            rows[index].add(change, self.decay)

    def note_profiles(self, changes: Changes, derivatives: Derivatives, cell: int, cells: int) -> None:
        """Adds the means over all neurons of one step's responses and gains to a cell of time."""
        for output in self.tangents.outputs:
            for variable in self.tangents.slots:
                self._note((output, variable), changes.get((output, variable)), cell, cells)
                self._note((f"gain of {output}", variable), derivatives.get((output, variable)), cell, cells)

    def _note(self, key: tuple[str, str], value: Tensor | float | None, cell: int, cells: int) -> None:
        if value is not None:
            if key not in self.profiles:
                self.profiles[key] = TraceBuffer(Trace(".".join(key), None, ()), cells)
            self.profiles[key].add(torch.as_tensor(value).mean(), cell)

    def note_means(self, key: tuple[str, str], means: Tensor, cells_of: list[int], cells: int) -> None:
        """Adds means over all neurons, (steps,), each to its cell of time."""
        if key not in self.profiles:
            self.profiles[key] = TraceBuffer(Trace(".".join(key), None, ()), cells)
        self.profiles[key].add_each(means, cells_of)

    def merge(self) -> None:
        """Adds neighbouring bins up: a merged current acts in both, a merged output is the sum over both."""
        self.weights = merged_weights(self.weights)
        for key, rows in self.rows.items():
            binned = self.tangents.is_binned(key[1])
            self.rows[key] = {
                index // 2: row.merged(rows.get(index + 1), binned) for index, row in rows.items() if index % 2 == 0
            }

    def merge_profiles(self) -> None:
        """Adds neighbouring cells of the mean responses up."""
        for profile in self.profiles.values():
            profile.merge()

    def load_profile(self, key: tuple[str, str], tensor: Tensor) -> None:
        """Puts back the (sums, weights) of one profile, (2, cells)."""
        profile = TraceBuffer(Trace(".".join(key), None, ()), tensor.shape[1])
        profile.sums, profile.weights = tensor[0].clone(), tensor[1].tolist()
        self.profiles[key] = profile

    @property
    def band(self) -> int:
        """How many bins, its own included, a bin's outputs answer to at most."""
        widths = (
            row.sums.shape[0]
            for (_, variable), rows in self.rows.items()
            if self.tangents.is_binned(variable)
            for row in rows.values()
        )
        return max(widths, default=1)

    def pulled(
        self,
        variable: str,
        signals: Mapping[str, list[Tensor | None]],
        slot: int,
        factors: Mapping[tuple[str, str], float] | None = None,
    ) -> Tensor | None:
        """Returns the learning signal on one slot of a variable: the sum over outputs and bins of M[bin, slot] h[bin].

        Args:
            variable: A current, a parameter or an initial state.
            signals: Learning signals by output, one per bin.
            slot: The bin of a current; 0 for the others.
            factors: Finite-horizon factors by (output, variable).
        """
        total: Tensor | None = None
        for output, signal in signals.items():
            factor = factors.get((output, variable), 1.0) if factors else 1.0
            for index, row in self.rows.get((output, variable), {}).items():
                given = signal[index]
                if given is not None and row.first <= slot < row.first + row.sums.shape[0]:
                    term = row.sums[slot - row.first] * (given * (factor / self.weights[index]))
                    total = term if total is None else total + term
        return total
