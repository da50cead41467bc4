"""Tangents: the forward-mode derivatives of one core, carried along while time passes."""

from __future__ import annotations

from collections.abc import Mapping, Sequence

import torch
from torch import Tensor

from tracecompile.layers import Layer
from tracecompile.runtime.statistics import accumulator_dtype, padded, pairs_added

Derivatives = Mapping[tuple[str, str], Tensor | float]
"""Per-neuron derivatives of one step of a core: (result, variable) to a tensor or a number."""

Changes = dict[tuple[str, str], Tensor]
"""How the outputs of one step answer to what acted since the beginning, by (output, variable): (slots, *shape)."""

FADED = 8.0
"""A bin's tangents are dropped once they are below this many roundings of the latest bin's."""


class Tangents:
    """Derivatives of the states with respect to constant currents, one per time bin, and to parameters.

    For a current with one slot per bin: e[c] <- J_ss e[c] + J_sI [c is now], and the outputs of the step answer with
    J_ys e[c] + J_yI [c is now]. For a parameter, or the initial value of a state, the same with one slot that is always
    now. Slots that have faded are dropped, oldest first: what is left is the band of bins that a neuron remembers.

    Attributes:
        slots: Number of slots by variable: a current of the layer, a static value, or ``init:<state>``.
        first: The oldest bin that is still carried.
        latest_bin: The bin of the last step.
        by_state: Tangents by (variable, state), (slots, *shape).
    """

    def __init__(self, layer: Layer, parameters: Sequence[str], initial: Sequence[str], bins: int) -> None:
        """Makes no tangents yet.

        Args:
            layer: A layer with a core.
            parameters: Static values of the core that need a gradient.
            initial: States whose initial value needs a gradient.
            bins: K.
        """
        self.outputs, self.states = layer.outputs, layer.states
        self.slots = dict.fromkeys(layer.currents, bins) | dict.fromkeys(
            [*parameters, *(f"init:{state}" for state in initial)], 1
        )
        self.first = 0
        self.by_state: dict[tuple[str, str], Tensor] = {}
        self.latest_bin = 0

    def begin(self, states: Mapping[str, Tensor]) -> None:
        """Sets the tangents of initial states that need a gradient to one."""
        for variable in self.slots:
            if variable.startswith("init:"):
                state = variable.removeprefix("init:")
                ones = torch.ones_like(states[state], dtype=accumulator_dtype(states[state].dtype))
                self.by_state[variable, state] = ones.unsqueeze(0)

    def is_binned(self, variable: str) -> bool:
        """Tells whether a variable has one slot per bin."""
        return self.slots[variable] > 1

    def advance(self, derivatives: Derivatives, index: int, like: Mapping[str, Tensor]) -> Changes:
        """Takes one step.

        Args:
            derivatives: The step's Jacobian.
            index: The bin of this step.
            like: Values of the outputs and next states (``next:<position>``), for their shapes.

        Returns:
            For currents the slots ``first`` to ``index``, for the others one slot. What is zero is left out.
        """
        self.enter(index)
        changes: Changes = {}
        fresh: dict[tuple[str, str], Tensor] = {}
        for variable in self.slots:
            for output in self.outputs:
                change = self._change(derivatives, output, variable, like[output])
                if change is not None:
                    changes[output, variable] = change
            for position, state in enumerate(self.states):
                change = self._change(derivatives, f"next:{position}", variable, like[f"next:{position}"])
                if change is not None:
                    fresh[variable, state] = change
        self.by_state = fresh
        return changes

    def enter(self, index: int) -> None:
        """Says in which bin the next step is; at the beginning of a bin, what the neurons have forgotten is dropped."""
        if index > self.latest_bin:
            self._drop_faded()
        self.latest_bin = index

    def _change(self, derivatives: Derivatives, result: str, variable: str, like: Tensor) -> Tensor | None:
        """Returns the derivatives of a result with respect to each slot of a variable, or None where they are zero."""
        slots = self.latest_bin + 1 - self.first if self.is_binned(variable) else 1
        total: Tensor | None = None
        for state in self.states:
            slope, tangent = derivatives.get((result, state)), self.by_state.get((variable, state))
            if slope is not None and tangent is not None:
                term = slope * padded(tangent, 0, slots)
                total = term if total is None else total + term
        direct = derivatives.get((result, variable))
        if direct is None:
            return total
        if total is None:
            total = torch.zeros((slots, *like.shape), dtype=accumulator_dtype(like.dtype), device=like.device)
        total[-1] += direct
        return total

    def _drop_faded(self) -> None:
        """Drops the oldest slots as far as every state has forgotten them."""
        binned = [key for key in self.by_state if self.is_binned(key[0])]
        if not binned:
            return
        keep = []
        for key in binned:
            tangent = self.by_state[key]
            sizes = tangent.abs().reshape(len(tangent), -1).amax(1)
            keep.append(sizes > FADED * torch.finfo(tangent.dtype).eps * sizes[-1])
        alive = torch.stack(keep).any(0)
        # Where nothing is alive all slots are zero, and the latest stays.
        faded = int(alive.to(torch.int).argmax()) if bool(alive.any()) else len(alive) - 1
        if faded:
            for key in binned:
                self.by_state[key] = self.by_state[key][faded:]
            self.first += faded

    def merge(self) -> None:
        """Adds neighbouring bins up: a merged current acts in both."""
        for key, tangent in self.by_state.items():
            if self.is_binned(key[0]):
                self.by_state[key] = slots_merged(tangent, self.first)
        self.first //= 2
        self.latest_bin //= 2


def slots_merged(values: Tensor, first: int, axis: int = 0) -> Tensor:
    """Returns the sums of slots 2 i and 2 i + 1, of values whose first slot along an axis is number ``first``."""
    if first % 2:
        missing = list(values.shape)
        missing[axis] = 1
        values = torch.cat([values.new_zeros(missing), values], axis)
    return pairs_added(values, axis)
