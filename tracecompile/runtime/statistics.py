"""What is recorded while time passes: traces of the inputs, tangents of the states, responses of the outputs.

Everything here has a size that does not depend on the number of steps.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence

import torch
from torch import Tensor

from tracecompile.layers import Layer, Trace

Derivatives = Mapping[tuple[str, str], Tensor | float]
"""Per-neuron derivatives of one step of a core: (result, variable) to a tensor or a number."""


def accumulator_dtype(dtype: torch.dtype) -> torch.dtype:
    """Returns the precision in which statistics of a value are kept: never below float32."""
    return torch.promote_types(dtype, torch.float32)


class TraceBuffer:
    """The decaying sum of one source per bin: tr <- d tr + x, inverted to the mean input.

    The inverse is ``tr (1 - d) / (1 - d**n)`` after n steps, the start-up correction included; with no decay, tr / n.
    Both are tr divided by the same sum over ones, which is kept as ``weights``.
    """

    def __init__(self, trace: Trace, bins: int) -> None:
        """Makes an empty trace with one slot per bin; the buffer itself is made at the first step."""
        self.decay = trace.decay
        self.bins = bins
        self.sums: Tensor | None = None
        self.weights = [0.0] * bins

    def add(self, value: Tensor, index: int) -> None:
        """Adds one step's value, of any shape, to the bin ``index``."""
        if self.sums is None:
            self.sums = torch.zeros(
                (self.bins, *value.shape), dtype=accumulator_dtype(value.dtype), device=value.device
            )
        if self.decay is not None:
            self.sums[index].mul_(self.decay)
            self.weights[index] *= self.decay
        self.sums[index].add_(value)
        self.weights[index] += 1.0

    def merge(self) -> None:
        """Adds neighbouring bins up: bins 2 i and 2 i + 1 become bin i."""
        self.weights = _merged_weights(self.weights)
        if self.sums is not None:
            self.sums = _padded(_pairs_added(self.sums, 0), 0, self.bins)

    def mean(self, index: int) -> Tensor:
        """Returns the mean input of a bin, with the shape of one step's value."""
        assert self.sums is not None
        return self.sums[index] / self.weights[index]


class Responses:
    """Tangents and responses of one core: forward-mode derivatives, carried along while time passes.

    For a current with K slots (one per bin): e[c] <- J_ss e[c] + J_sI [c is now], M[now, c] += J_ys e[c] + J_yI [c is
    now]. For a parameter the same with one slot that is always now.
    """

    def __init__(
        self, layer: Layer, parameters: Sequence[str], initial: Sequence[str], bins: int, decay: float | None
    ) -> None:
        """Makes empty statistics.

        Args:
            layer: A layer with a core.
            parameters: Static values of the core that need a gradient.
            initial: States whose initial value needs a gradient.
            bins: K.
            decay: Decay of the sums, as for the traces of the layer.
        """
        self.outputs = layer.outputs
        self.states = layer.states
        self.bins = bins
        self.decay = decay
        self.slots = dict.fromkeys(layer.currents, bins) | dict.fromkeys(
            [*parameters, *(f"init:{s}" for s in initial)], 1
        )
        self.tangents: dict[tuple[str, str], Tensor] = {}
        self.sums: dict[tuple[str, str], Tensor] = {}
        self.weights = [0.0] * bins
        self.profiles: dict[tuple[str, str], TraceBuffer] = {}
        """Mean over the neurons of the response, by (output, variable), and of the gain within a step, by cell.

        Empty where nobody wants them."""

    def begin(self, states: Mapping[str, Tensor]) -> None:
        """Sets the tangents of initial states that need a gradient to one."""
        for variable in self.slots:
            if variable.startswith("init:"):
                state = variable.removeprefix("init:")
                ones = torch.ones_like(states[state], dtype=accumulator_dtype(states[state].dtype))
                self.tangents[variable, state] = ones.unsqueeze(0)

    def add(
        self, derivatives: Derivatives, index: int, like: Mapping[str, Tensor], profile: tuple[int, int] | None = None
    ) -> None:
        """Adds one step.

        Args:
            derivatives: The step's Jacobian.
            index: The bin of this step.
            like: Values of the outputs and next states, by result name, for their shapes.
            profile: (cell of this step, number of cells) for the mean responses, where they are wanted.
        """
        if self.decay is not None:
            self.weights[index] *= self.decay
        self.weights[index] += 1.0
        fresh: dict[tuple[str, str], Tensor] = {}
        for variable, slots in self.slots.items():
            now = index if slots > 1 else 0
            for output in self.outputs:
                change = self._change(derivatives, output, variable, now, like[output])
                self._accumulate(output, variable, index, change, slots, like[output])
                self._note_profile((output, variable), change, profile)
                self._note_profile((f"gain of {output}", variable), derivatives.get((output, variable)), profile)
            for position, state in enumerate(self.states):
                change = self._change(derivatives, f"next:{position}", variable, now, like[f"next:{position}"])
                if change is not None:
                    fresh[variable, state] = change
        self.tangents = fresh

    def _note_profile(
        self, key: tuple[str, str], change: Tensor | float | None, profile: tuple[int, int] | None
    ) -> None:
        if profile is not None and change is not None:
            cell, cells = profile
            if key not in self.profiles:
                self.profiles[key] = TraceBuffer(Trace(".".join(key), None, ()), cells)
            self.profiles[key].add(torch.as_tensor(change).mean(), cell)

    def _change(self, derivatives: Derivatives, result: str, variable: str, now: int, like: Tensor) -> Tensor | None:
        """Returns the tangents of a result, slots up to ``now`` first, or None where they are zero."""
        slots = now + 1
        total: Tensor | None = None
        for state in self.states:
            slope, tangent = derivatives.get((result, state)), self.tangents.get((variable, state))
            if slope is not None and tangent is not None:
                term = slope * _with_slots(tangent, slots)
                total = term if total is None else total + term
        direct = derivatives.get((result, variable))
        if direct is None:
            return total
        if total is None:
            total = torch.zeros((slots, *like.shape), dtype=accumulator_dtype(like.dtype), device=like.device)
        total[now] += direct
        return total

    def _accumulate(
        self, output: str, variable: str, index: int, change: Tensor | None, slots: int, like: Tensor
    ) -> None:
        key = (output, variable)
        if change is None:
            return
        if key not in self.sums:
            shape = (self.bins, slots, *like.shape)
            self.sums[key] = torch.zeros(shape, dtype=accumulator_dtype(like.dtype), device=like.device)
        row = self.sums[key][index]
        if self.decay is not None:
            row.mul_(self.decay)
        row[: change.shape[0]].add_(change)

    def merge(self) -> None:
        """Adds neighbouring bins up: a merged current acts in both, a merged output is the sum over both."""
        self.weights = _merged_weights(self.weights)
        for (variable, state), tangent in self.tangents.items():
            if self.slots[variable] > 1:
                self.tangents[variable, state] = _pairs_added(tangent, 0)
        for (output, variable), sums in self.sums.items():
            merged = _padded(_pairs_added(sums, 0), 0, self.bins)
            if self.slots[variable] > 1:
                merged = _padded(_pairs_added(merged, 1), 1, self.slots[variable])
            self.sums[output, variable] = merged

    def load(self, kind: str, key: tuple[str, str], tensor: Tensor) -> None:
        """Puts back one "tangent", "response" or "profile" of a snapshot."""
        if kind == "tangent":
            self.tangents[key] = tensor.clone()
        elif kind == "response":
            self.sums[key] = tensor.clone()
        elif kind == "profile":
            profile = TraceBuffer(Trace(".".join(key), None, ()), tensor.shape[1])
            profile.sums, profile.weights = tensor[0].clone(), tensor[1].tolist()
            self.profiles[key] = profile

    def merge_profiles(self) -> None:
        """Adds neighbouring cells of the mean responses up."""
        for profile in self.profiles.values():
            profile.merge()

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
        first = slot if self.slots[variable] > 1 else 0
        for output, signal in signals.items():
            sums = self.sums.get((output, variable))
            if sums is None:
                continue
            for index in range(first, len(signal)):
                given = signal[index]
                if given is not None:
                    factor = factors.get((output, variable), 1.0) if factors else 1.0
                    term = sums[index, slot] * (given * (factor / self.weights[index]))
                    total = term if total is None else total + term
        return total


def _with_slots(tangent: Tensor, slots: int) -> Tensor:
    """Returns tangents with zeros for bins that have begun since they were made."""
    if tangent.shape[0] >= slots:
        return tangent
    return torch.cat([tangent, tangent.new_zeros((slots - tangent.shape[0], *tangent.shape[1:]))])


def _pairs_added(values: Tensor, axis: int) -> Tensor:
    """Returns the sums of neighbours 2 i and 2 i + 1 along an axis; a last one without a neighbour stays."""
    even, odd = values.unfold(axis, 1, 2).squeeze(-1), values.narrow(axis, 1, values.shape[axis] - 1)
    total = even.clone()
    if values.shape[axis] > 1:
        odd = odd.unfold(axis, 1, 2).squeeze(-1)
        total.narrow(axis, 0, odd.shape[axis]).add_(odd)
    return total


def _padded(values: Tensor, axis: int, size: int) -> Tensor:
    """Returns values with zeros behind them along an axis."""
    missing = list(values.shape)
    missing[axis] = size - values.shape[axis]
    return torch.cat([values, values.new_zeros(missing)], axis)


def _merged_weights(weights: list[float]) -> list[float]:
    merged = [sum(weights[index : index + 2]) for index in range(0, len(weights), 2)]
    return merged + [0.0] * (len(weights) - len(merged))
