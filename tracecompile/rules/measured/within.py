"""What several bins get wrong about time within each of them, as one number per layer, sample and pair of bins.

A bin takes a learning signal to be the same at all of its steps. Below the top layer it is not: a current near the end
of the sequence has less time to act, and so has one near the end of a bin that only the next bin looks at. With p(t)
the profile of the signal on the output, and rho(t) the answer at t of the mean output to a constant current in bin c,

    factor of M[c', c] = sum over t in c' of rho(t) p(t) / (sum of rho(t) over c' * mean of p over c'),

and the profile below is p filtered backwards by the kernel of the layer. A single bin records rho (see
``horizon``). Of several bins it is known how each answers to the one before, and within a bin rho is taken to be that
of the leaky neuron which does the same: nothing is recorded for it. All of it is
by sample, so that a gradient does not depend on what else is in the batch. With a bin per step all factors are one.
"""

from __future__ import annotations

import itertools
from collections.abc import Sequence
from typing import TYPE_CHECKING

import torch
from torch import Tensor

from tracecompile.layers import Layer
from tracecompile.rules.measured.horizon import LARGEST_FACTOR, Horizon, Profile
from tracecompile.rules.measured.one_pole import Kernel, fitted_leak

if TYPE_CHECKING:
    from tracecompile.rules.measured.responses import Responses
    from tracecompile.rules.rule import Response

MOST_CELLS = 64
"""Cells of time in which profiles are kept; as many steps are resolved exactly."""


class HorizonOfBins(Horizon):
    """Profiles of the learning signals of one backward pass over several bins."""

    def __init__(self, edges: Sequence[int], device: torch.device) -> None:
        """Starts with no signal; ``edges`` are those of the bins, ``device`` is where the signals are."""
        self.bin_widths = [after - before for before, after in itertools.pairwise(edges)]
        share = max(1, MOST_CELLS // len(self.bin_widths))
        self.cell_edges = [0]
        self.parts: list[slice] = []
        for first, width in zip(edges, self.bin_widths, strict=False):
            count = min(width, share)
            begin = len(self.cell_edges) - 1
            self.cell_edges += [first + width * (number + 1) // count for number in range(count)]
            self.parts.append(slice(begin, begin + count))
        super().__init__([after - before for before, after in itertools.pairwise(self.cell_edges)], device)

    def note(self, origin: str, signal: Tensor, profile: Profile, index: int) -> None:
        """Adds a signal on the values of one bin, as a profile has it within this."""
        part, norms = self.parts[index], self._norms(signal)
        own, widths = profile.reshape(-1, self.cells)[:, part], self.widths[part]
        if own.shape[0] not in (1, norms.shape[0]):
            own = own.mean(0, keepdim=True)
        total = (own * widths).sum(1, keepdim=True)
        share = torch.where(total > 0, own / total, 1.0 / widths.sum()) * norms
        if origin not in self._profiles:
            self._profiles[origin] = self.widths.new_zeros((norms.shape[0], self.cells))
        self._profiles[origin][:, part] += share

    def note_moment(self, origin: str, signal: Tensor, step: int) -> None:
        """See Horizon."""
        found = self.at(step) * self._norms(signal)
        self._moments[origin] = self._moments[origin] + found if origin in self._moments else found

    def _norms(self, signal: Tensor) -> Tensor:
        """Returns the norm of a signal by sample, (samples, 1)."""
        rows = signal.reshape(signal.shape[0] if signal.ndim else 1, -1)
        norms: Tensor = torch.linalg.vector_norm(rows, dim=1, keepdim=True)
        return norms.to(self.widths)

    def answer(self, layer: Layer, response: Response, signals: Sequence[str]) -> Profile | None:
        """Sets the factors of a layer; returns the profile of the signals that it hands on."""
        recorded = response.responses
        outputs = [name for name in layer.outputs if self.knows(name)]
        handed: Profile | None = None
        for output in outputs:
            kernel = None if recorded is None else self._kernel(layer, output, recorded)
            if recorded is not None and kernel is not None and output in signals:
                binned, always = self._factors(kernel, self.of_bins(output))
                for variable in [variable for name, variable in recorded.rows if name == output]:
                    own = binned if recorded.tangents.is_binned(variable) else always
                    response.factors[output, variable] = own
            below = self.of(output) if kernel is None else kernel.backwards(self.of(output))
            handed = below if handed is None else _joined(handed, below)
        return handed

    def _kernel(self, layer: Layer, output: str, recorded: Responses) -> Kernel | None:
        """Returns how an output answers to the first current that it answers to."""
        rows = next((recorded.rows[output, name] for name in layer.currents if (output, name) in recorded.rows), None)
        return None if rows is None else Kernel(fitted_leak(rows, self.bin_widths), self.cell_edges)

    def _factors(self, kernel: Kernel, profile: Profile) -> tuple[Tensor, Tensor]:
        """Returns the factors by (sample, bin of the output, bin of the current), and those of what acts all the time
        by (sample, bin, 0)."""
        answers = torch.stack([kernel.answers[:, :, part].sum(2) for part in self.parts], 2)
        signal, steps = (profile * self.widths).unsqueeze(2), self.widths.unsqueeze(1)

        def per_bin(values: Tensor) -> Tensor:
            return torch.stack([values[..., part, :].sum(-2) for part in self.parts], -2)

        mean = per_bin(signal) / per_bin(steps)
        found = []
        for rho in (answers, answers.sum(2, keepdim=True)):
            factors = per_bin(rho * signal) / (per_bin(rho * steps) * mean)
            # What is divided by zero is neither.
            found.append(torch.where((factors >= 0.0) & (factors <= LARGEST_FACTOR), factors, torch.ones_like(factors)))
        return found[0], found[1]


def _joined(one: Profile, other: Profile) -> Profile:
    """Adds profiles by sample, or of all samples where one has others."""
    alike = one.shape[0] == other.shape[0] or 1 in (one.shape[0], other.shape[0])
    return one + other if alike else one.mean(0, keepdim=True) + other.mean(0, keepdim=True)
