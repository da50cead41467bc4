"""What several bins get wrong about time within each of them, as one number per layer and pair of bins.

A bin takes a learning signal to be the same at all of its steps. Below the top layer it is not: a current near the end
of the sequence has less time to act, and so has one near the end of a bin that only the next bin looks at. With p(t)
the profile of the signal on the output, and rho(t) the answer at t of the mean output to a constant current in bin c,

    factor of M[c', c] = sum over t in c' of rho(t) p(t) / (sum of rho(t) over c' * mean of p over c'),

and the profile below is p filtered backwards by the kernel of the layer. A single bin records rho (see
``horizon``). Of several bins it is known how each answers to the one before, and within a bin rho is taken to be that
of the leaky neuron which does the same: nothing is recorded for it. With a bin per step all
factors are one.
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

MOST_CELLS = 256
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
        part, own = self.parts[index], torch.zeros_like(profile)
        own[part] = profile[part]
        silent = own.sum() <= 0
        own[part] = torch.where(silent, torch.ones_like(own[part]), own[part])
        super().note(origin, signal, own, index)

    def answer(self, layer: Layer, response: Response, signals: Sequence[str]) -> Profile | None:
        """Sets the factors of a layer; returns the profile of the signals that it hands on."""
        recorded = response.responses
        outputs = [name for name in layer.outputs if self.knows(name)]
        if recorded is None:
            return sum((self.of(name) for name in outputs[1:]), self.of(outputs[0]))
        handed: Profile | None = None
        for output in outputs:
            kernel = self._kernel(layer, output, recorded)
            if kernel is not None and output in signals:
                variables = [variable for name, variable in recorded.rows if name == output]
                found = self._factors(kernel, self.of_bins(output))
                for variable in variables:
                    binned = recorded.tangents.is_binned(variable)
                    response.factors[output, variable] = found[0] if binned else found[1]
            below = self.of(output) if kernel is None else kernel.backwards(self.of(output))
            handed = below if handed is None else handed + below
        return handed

    def _kernel(self, layer: Layer, output: str, recorded: Responses) -> Kernel | None:
        """Returns how an output answers to the first current that it answers to."""
        rows = next((recorded.rows[output, name] for name in layer.currents if (output, name) in recorded.rows), None)
        return None if rows is None else Kernel(fitted_leak(rows, self.bin_widths), self.cell_edges)

    def _factors(self, kernel: Kernel, profile: Profile) -> tuple[Tensor, Tensor]:
        """Returns the factors by (bin of the output, bin of the current), and by (bin, 0) of what acts all the time."""
        answers = torch.stack([kernel.answers[:, part].sum(1) for part in self.parts], 1)
        signal, steps = profile * self.widths, self.widths

        def per_bin(values: Tensor) -> Tensor:
            return torch.stack([values[part].sum(0) for part in self.parts])

        mean = (per_bin(signal) / per_bin(steps)).unsqueeze(1)
        found = []
        for rho in (answers, answers.sum(1, keepdim=True)):
            exact, flat = per_bin(rho * signal.unsqueeze(1)), per_bin(rho * steps.unsqueeze(1)) * mean
            factors = exact / flat
            # What is divided by zero is neither.
            found.append(torch.where((factors >= 0.0) & (factors <= LARGEST_FACTOR), factors, torch.ones_like(factors)))
        return found[0], found[1]
