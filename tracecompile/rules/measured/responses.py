"""Responses: how the mean outputs of each time bin answer to a constant current in each earlier one."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass

import torch
from torch import Tensor

from tracecompile.layers import Pair
from tracecompile.rules.measured.profiles import Profile, Profiles
from tracecompile.rules.measured.tangents import Tangents, slots_merged
from tracecompile.rules.sums import folded_weight, merged_weights


@dataclass
class Row:
    """The responses of one bin's outputs: sums over its steps, (slots, *shape), the first slot being bin ``first``."""

    first: int
    sums: Tensor

    def add(self, total: Tensor, factor: float) -> None:
        """Adds what has accrued since the last fold; ``factor`` is what is left of the sums of before."""
        if factor != 1.0:
            self.sums.mul_(factor)
        # Later in the bin old slots may be gone, never come.
        self.sums[self.sums.shape[0] - total.shape[0] :].add_(total)

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
        self.rows: dict[Pair, dict[int, Row]] = {}
        self.weights = [0.0] * bins
        self.profiles: Profiles = {}

    def fold(self, index: int, steps: int, sums: Mapping[Pair, Tensor], ends: Mapping[Pair, Tensor]) -> None:
        """Takes what has accrued over the latest steps of the bin ``index``.

        Args:
            index: The bin.
            steps: How many.
            sums: Responses, by (output, variable).
            ends: Tangents, by (variable, state).
        """
        self.tangents.enter(index)
        answers = self.tangents.answers(sums)
        self.tangents.move(ends)
        self.weights[index] = folded_weight(self.weights[index], self.decay, steps)
        factor = 1.0 if self.decay is None else self.decay**steps
        for key, total in answers.items():
            rows = self.rows.setdefault(key, {})
            if index in rows:
                rows[index].add(total, factor)
            else:
                first = self.tangents.first if self.tangents.is_binned(key[1]) else 0
                rows[index] = Row(first, _own(total, sums.get(key)))

    def note(self, key: Pair, means: Tensor, cells: Sequence[int], count: int) -> None:
        """Adds means over all neurons, (steps,), each to its cell of time, of so many cells."""
        if key not in self.profiles:
            self.profiles[key] = Profile(count)
        self.profiles[key].add(means, cells)

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
        factors: Mapping[tuple[str, str], Tensor] | None = None,
    ) -> Tensor | None:
        """Returns the learning signal on one slot of a variable: the sum over outputs and bins of M[bin, slot] h[bin].

        Args:
            variable: A current, a parameter or an initial state.
            signals: Learning signals by output, one per bin.
            slot: The bin of a current; 0 for the others.
            factors: Finite-horizon factors by (output, variable), each by (sample, bin, slot); one of them
                for all samples may do.
        """
        variable = self.tangents.alike.get(variable, variable)
        total: Tensor | None = None
        for output, signal in signals.items():
            factor = factors.get((output, variable)) if factors else None
            for index, row in self.rows.get((output, variable), {}).items():
                given = signal[index]
                if given is not None and row.first <= slot < row.first + row.sums.shape[0]:
                    share: Tensor | float = 1.0 / self.weights[index]
                    if factor is not None:
                        share = _spread(factor[:, index, slot], given) * share
                    term = row.sums[slot - row.first] * (given * share)
                    total = term if total is None else total + term
        return total

    def lacking(
        self,
        gain: str,
        current: str,
        means: Sequence[Tensor],
        signals: Mapping[str, list[Tensor | None]],
        factors: Mapping[tuple[str, str], Tensor],
    ) -> Tensor | None:
        """Returns the signal on a factor of a current, less what its means would make of it.

        Args:
            gain: The variable that is the factor.
            current: Of the layer.
            means: Of the current, by bin.
            signals, factors: See ``pulled``.
        """
        acting = self.tangents.alike.get(current, current)
        total: Tensor | None = None
        for output, signal in signals.items():
            # A single bin has one factor for all that acts, which one that changes its sign would spoil.
            by = gain if self.tangents.is_binned(current) else acting
            factor = factors.get((output, by))
            of_current = self.rows.get((output, acting), {})
            for index, row in self.rows.get((output, gain), {}).items():
                given = signal[index]
                if given is None:
                    continue
                answer = row.sums[0]
                if index in of_current:
                    for slot, response in enumerate(of_current[index].sums, of_current[index].first):
                        answer = answer - response * means[slot]
                if factor is not None:
                    given = given * _spread(factor[:, index, 0], given)
                term = answer * (given * (1.0 / self.weights[index]))
                total = term if total is None else total + term
        return total


def _own(total: Tensor, given: Tensor | None) -> Tensor:
    """Returns sums that may be added to in place, which those that were given may not."""
    shared = given is not None and total.untyped_storage().data_ptr() == given.untyped_storage().data_ptr()
    return total.clone(memory_format=torch.contiguous_format) if shared else total


def _spread(factor: Tensor, signal: Tensor) -> Tensor:
    """Returns a factor by sample such that it multiplies a signal."""
    if signal.ndim == 0 or factor.shape[0] not in (1, signal.shape[0]):
        factor = factor.mean(0, keepdim=True)
    return factor.to(signal.dtype).reshape(-1, *([1] * (signal.ndim - 1))) if signal.ndim else factor[0].to(signal)
