"""Tangents: the derivatives of one core's states by constant currents, one per time bin, and by its parameters."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from functools import reduce

import torch
from torch import Tensor

from tracecompile.layers import Layer, Pair
from tracecompile.rules.accumulation import accumulator_dtype
from tracecompile.rules.measured.lines import FROM
from tracecompile.rules.sums import pairs_added

FADED = 8.0
"""A bin's tangents are dropped once they are below this many roundings of the latest bin's."""

INITIAL = "init:"
"""Prefix of the variables that stand for the initial value of a state."""


class Tangents:
    """Derivatives of the states where the record was last folded.

    A current has one slot per bin, a parameter or the initial value of a state has one slot that is always now. Slots
    that have faded are dropped, oldest first: what is left is the band of bins that a neuron remembers.

    Attributes:
        slots: Number of slots by variable: a current of the layer, a static value, or ``init:<state>``.
        alike: Currents that have none of their own, since they act as another one does.
        first: The oldest bin that is still carried.
        latest_bin: The bin of the last step.
        by_state: Tangents by (variable, state), (slots, *shape).
    """

    def __init__(
        self, layer: Layer, alike: Mapping[str, str], parameters: Sequence[str], initial: Sequence[str], bins: int
    ) -> None:
        """Makes no tangents yet.

        Args:
            layer: A layer with a core.
            alike: Currents that act as another one does, and that one.
            parameters: Static values of the core that need a gradient.
            initial: States whose initial value needs a gradient.
            bins: K.
        """
        self.outputs, self.states = layer.outputs, layer.states
        self.alike = alike
        currents = [current for current in layer.currents if current not in self.alike]
        self.slots = dict.fromkeys(currents, bins) | dict.fromkeys(
            [*parameters, *(f"{INITIAL}{state}" for state in initial)], 1
        )
        self.first = 0
        self.by_state: dict[Pair, Tensor] = {}
        self.latest_bin = 0

    def begin(self, states: Mapping[str, Tensor]) -> None:
        """Sets the tangents of initial states that need a gradient to one."""
        for variable in self.slots:
            if variable.startswith(INITIAL):
                state = variable.removeprefix(INITIAL)
                ones = torch.ones_like(states[state], dtype=accumulator_dtype(states[state].dtype))
                self.by_state[variable, state] = ones.unsqueeze(0)

    def is_binned(self, variable: str) -> bool:
        """Tells whether a variable has one slot per bin."""
        return self.slots[self.alike.get(variable, variable)] > 1

    def acting_as(self, variable: str) -> list[str]:
        """Returns a variable and the currents that act as it does."""
        return [variable, *(current for current, other in self.alike.items() if other == variable)]

    def enter(self, index: int) -> None:
        """Says in which bin the last steps were; where one begins, what the neurons have forgotten is dropped."""
        if index > self.latest_bin:
            self._drop_faded()
        self.latest_bin = index

    def answers(self, given: Mapping[Pair, Tensor]) -> dict[Pair, Tensor]:
        """Returns how outputs answer to what acted since the beginning, by (output, variable): (slots, *shape).

        Args:
            given: Their answers to what acted since the last fold, and to the states as that left them.
        """
        return self._by_slot(given, self.outputs, lambda output, variable: (output, variable))

    def move(self, given: Mapping[Pair, Tensor]) -> None:
        """Takes the tangents on to where a fold is.

        Args:
            given: By (variable, state), of what acted since the last fold, and of the states as that left them.
        """
        moved = self._by_slot(given, self.states, lambda state, variable: (variable, state))
        self.by_state = {(variable, state): value for (state, variable), value in moved.items()}

    def _by_slot(self, given: Mapping[Pair, Tensor], results: Sequence[str], key: object) -> dict[Pair, Tensor]:
        assert callable(key)
        made: dict[Pair, Tensor] = {}
        for result in results:
            pairs = ((state, given.get(key(result, f"{FROM}{state}"))) for state in self.states)
            through = {state: value for state, value in pairs if value is not None}
            for variable in self.slots:
                change = self._combined(variable, through, given.get(key(result, variable)))
                if change is not None:
                    made[result, variable] = change
        return made

    def _combined(self, variable: str, through: Mapping[str, Tensor], fresh: Tensor | None) -> Tensor | None:
        """Applies what time does to the tangents where it began, and adds what has begun since to the latest slot."""
        slots = self.latest_bin + 1 - self.first if self.is_binned(variable) else 1
        known = ((factor, self.by_state.get((variable, state))) for state, factor in through.items())
        parts = [(factor, tangent) for factor, tangent in known if tangent is not None]
        if not parts:
            return None if fresh is None else padded_before(fresh.unsqueeze(0), slots)
        total = _products(parts, slots)
        if fresh is not None:
            total[-1] += fresh
        return total

    def _drop_faded(self) -> None:
        """Drops the oldest slots as far as every state has forgotten them.

        On a device they stay: to look at them would be to wait for it, and they are touched where a bin ends alone.
        """
        binned = [key for key in self.by_state if self.is_binned(key[0])]
        if not binned or self.by_state[binned[0]].is_cuda:
            return
        tangents, faded = [self.by_state[key] for key in binned], 0
        least = [FADED * torch.finfo(tangent.dtype).eps * _size(tangent[-1]) for tangent in tangents]
        # The latest stays, whatever it is.
        while faded < len(tangents[0]) - 1 and not any(
            bool(_size(tangent[faded]) > size) for tangent, size in zip(tangents, least, strict=True)
        ):
            faded += 1
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


def _size(values: Tensor) -> Tensor:
    """Returns the largest magnitude among some values."""
    return values.abs().amax()


def _products(parts: Sequence[tuple[Tensor, Tensor]], slots: int) -> Tensor:
    """Returns the sum of factors (*shape) times tangents (slots before, *shape), with zeros behind up to ``slots``."""
    shapes = [shape for factor, tangent in parts for shape in (factor.shape, tangent.shape[1:])]
    kinds = [torch.result_type(factor, tangent) for factor, tangent in parts]
    total = parts[0][1].new_empty((slots, *torch.broadcast_shapes(*shapes)), dtype=reduce(torch.promote_types, kinds))
    # Written where it will be: memory for slots is more to ask for than a product is to compute.
    (factor, tangent), *others = parts
    torch.mul(factor, tangent, out=total[: len(tangent)])
    total[len(tangent) :].zero_()
    for factor, tangent in others:
        total[: len(tangent)].addcmul_(factor, tangent)
    return total


def padded_before(values: Tensor, size: int) -> Tensor:
    """Returns values with zeros before them along the first axis, up to a size."""
    if values.shape[0] == size:
        return values
    return torch.cat([values.new_zeros((size - values.shape[0], *values.shape[1:])), values])


def slots_merged(values: Tensor, first: int, axis: int = 0) -> Tensor:
    """Returns the sums of slots 2 i and 2 i + 1, of values whose first slot along an axis is number ``first``."""
    if first % 2:
        missing = list(values.shape)
        missing[axis] = 1
        values = torch.cat([values.new_zeros(missing), values], axis)
    return pairs_added(values, axis)
