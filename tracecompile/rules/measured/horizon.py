"""The finite-horizon factor: what one mean over a short sequence gets wrong about time, as one number per layer.

With a single bin a layer's response is R = mean_t rho(t), with rho(t) the response of its output at t to a constant
current since the beginning. That is exact for a learning signal that is constant in time. Below the top layer it is
not: a current near the end has less time to act. With q(t) the profile of the learning signal on the output, the exact
factor for a constant input is

    c = sum_t rho(t) q(t) / (mean(rho) sum(q)),

and q below is q times the gain g(t) of the output within a step, filtered backwards by k(u) = a(u) - a(u - 1), where
a = rho / g is what the state has accumulated of the current. For a one-pole neuron a(t) is (1 - leak**t) / (1 - leak);
here all are what was measured, averaged over the neurons, on a fixed number of cells.
"""

from __future__ import annotations

import bisect
import itertools
from collections.abc import Sequence
from typing import TYPE_CHECKING

import torch
from torch import Tensor
from torch.nn import functional

from tracecompile.later import placed
from tracecompile.layers import Layer
from tracecompile.rules.measured.profiles import GAIN, Profiles
from tracecompile.rules.measured.profiles import Profile as Recorded

if TYPE_CHECKING:
    from tracecompile.rules.rule import Response

CELLS = 64
"""Cells of time in which the mean response is recorded; as many steps are resolved exactly."""
LARGEST_FACTOR = 10.0
"""Factors beyond this come from responses that cancel in the mean, and are not used."""

Profile = Tensor
"""A learning signal's share per cell of time, (cells,)."""


class Horizon:
    """Profiles of the learning signals of one backward pass.

    Attributes:
        cells: Number of cells in use.
    """

    def __init__(self, widths: Sequence[int], device: torch.device) -> None:
        """Starts with no signal; ``widths`` are the steps in each cell, ``device`` is where the signals are."""
        self.widths = placed(widths, torch.float64, device)
        self.ends = list(itertools.accumulate(widths))
        self.cells = len(widths)
        self._profiles: dict[str, Profile] = {}
        self._moments: dict[str, Profile] = {}

    def constant(self) -> Profile:
        """Returns the profile of a signal that is the same at every step."""
        return torch.ones_like(self.widths)

    def at(self, step: int) -> Profile:
        """Returns the profile of a signal that falls on one step."""
        profile, cell = torch.zeros_like(self.widths), bisect.bisect_right(self.ends, step)
        profile[cell] = 1.0 / (self.ends[cell] - (self.ends[cell - 1] if cell else 0))
        return profile

    def note(self, origin: str, signal: Tensor, profile: Profile, index: int) -> None:
        """Adds a signal on a value in a bin to the profile of that value, by its norm."""
        total = (profile * self.widths).sum().abs().clamp_min(1e-30)
        share = profile * (signal.norm().to(total) / total)
        self._profiles[origin] = self._profiles[origin] + share if origin in self._profiles else share

    def note_moment(self, origin: str, signal: Tensor, step: int) -> None:
        """Adds a signal on a value of one step, which needs no factor itself, to the profile of that value."""
        if origin not in self._moments:
            self._moments[origin] = torch.zeros_like(self.widths)
        self._moments[origin] += self.at(step) * signal.norm().to(self.widths)

    def knows(self, origin: str) -> bool:
        """Tells whether there are signals on a value."""
        return origin in self._profiles or origin in self._moments

    def of(self, origin: str) -> Profile:
        """Returns the profile of all signals on a value."""
        parts = [profiles[origin] for profiles in (self._profiles, self._moments) if origin in profiles]
        return sum(parts[1:], parts[0])

    def of_bins(self, origin: str) -> Profile:
        """Returns the profile of those signals on a value that its mean response answers to."""
        return self._profiles[origin]

    def answer(self, layer: Layer, response: Response, signals: Sequence[str]) -> Profile | None:
        """Sets the factors of a layer.

        Args:
            layer: The layer.
            response: Takes the factors of those outputs that there are signals on.
            signals: Names of these.

        Returns:
            The profile of the signals that it hands on.
        """
        outputs = [name for name in layer.outputs if self.knows(name)]
        if response.responses is None:
            return sum((self.of(name) for name in outputs[1:]), self.of(outputs[0]))
        handed: Profile | None = None
        for output in outputs:
            for (name, variable), recorded in response.responses.profiles.items():
                if name == output and output in signals:
                    response.factors[name, variable] = self.factor(recorded, self.of_bins(output)).reshape(1, 1, 1)
            below = self._handed(layer, output, response.responses.profiles)
            handed = below if handed is None else handed + below
        return handed

    def _handed(self, layer: Layer, output: str, profiles: Profiles) -> Profile:
        """Returns the profile of what an output hands on to the first current that it answers to."""
        profile = self.of(output)
        current = next((name for name in layer.currents if (output, name) in profiles), None)
        if current is None:
            return profile
        return self.below(profiles[output, current], profiles.get((f"{GAIN}{output}", current)), profile)

    def factor(self, response: Recorded, profile: Profile) -> Tensor:
        """Returns c for one response, a scalar."""
        rho = self._response(response)
        weighted, signal = rho * self.widths, profile * self.widths
        found = (rho * signal).sum() / (weighted.sum() * signal.sum() / self.widths.sum())
        # What is divided by zero is neither.
        return torch.where((found >= 0.0) & (found <= LARGEST_FACTOR), found, torch.ones_like(found))

    def below(self, response: Recorded, gain: Recorded | None, profile: Profile) -> Profile:
        """Returns the profile of the signal that a layer hands on.

        A response is a gain (the surrogate's slope, which follows the activity) times what the state has accumulated
        of the current. The signal passes the gain as it is at its time and is filtered backwards by the state's kernel.

        Args:
            response: Of an output to a current.
            gain: Of the output to the current of the same step; None where the current acts later only.
            profile: Of the signal on the output.
        """
        rho = self._response(response)
        slope = torch.ones_like(rho) if gain is None else self._response(gain)
        accumulated = torch.where(slope != 0, rho / slope, torch.zeros_like(rho))
        kernel = torch.diff(accumulated, prepend=rho.new_zeros(1))
        later_first = (profile * slope).flip(0).reshape(1, 1, -1)
        filtered = functional.conv1d(later_first, kernel.flip(0).reshape(1, 1, -1), padding=self.cells - 1)
        return filtered[0, 0, : self.cells].flip(0)

    def _response(self, response: Recorded) -> Tensor:
        return response.means(self.cells)
