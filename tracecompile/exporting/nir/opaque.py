"""Neurons that a library computes in one operator, read off what they answer to numbers.

Their steps are functions of one current and one membrane; what they compute of these where they are silent, at which
current they spike, and what the spike takes off, is found by asking. Whether it is that everywhere, the comparison of
the finished graph with the network shows.
"""

from __future__ import annotations

from collections.abc import Callable, Sequence
from typing import Any

import torch
from torch import Tensor, fx

from tracecompile.exporting.nir.polynomial import CLOSE, SPIKE, Condition, Polynomial
from tracecompile.neuron_step import NeuronStep, OpaqueStep

FAR = 1e6
"""Where a current surely makes a spike."""


class OpaqueNeurons:
    """Such neurons of one core, each asked once."""

    def __init__(self) -> None:
        self._known: dict[tuple[int, tuple[fx.Node, ...]], tuple[Polynomial, Polynomial]] = {}

    def value(
        self, module: NeuronStep, node: fx.Node, args: Sequence[Any], conditions: dict[str, Condition]
    ) -> Polynomial:
        """Returns one of the values of a step: its spike, or the next value of its membrane.

        Raises:
            ValueError: The step is something else than an affine function with a reset that subtracts.
        """
        key = id(module.step), tuple(node.all_input_nodes)
        if key not in self._known:
            self._known[key] = _asked(module.step, node, args, conditions)
        return self._known[key][module.position]


def _asked(
    step: OpaqueStep, node: fx.Node, args: Sequence[Any], conditions: dict[str, Condition]
) -> tuple[Polynomial, Polynomial]:
    inputs, states, tensors = step.sorted(args)
    if len(inputs) != 1 or len(states) != 1:
        raise ValueError(f"{type(step.neuron).__name__}, which has {len(states)} states")
    answers = _Answers(step, tensors)
    rest = answers.membrane(0.0, 0.0)
    gain, leak = rest - answers.membrane(-1.0, 0.0), rest - answers.membrane(0.0, -1.0)
    current, at_zero = answers.first_spike(gain, rest)
    threshold = gain * current + rest
    drop = [gain * x + rest - answers.membrane(x, 0.0) for x in (current + 1.0, current + 3.0)]
    if abs(drop[0] - drop[1]) > CLOSE * max(1.0, abs(drop[0])):
        raise ValueError(f"{type(step.neuron).__name__} with a reset that sets the membrane to a value")
    before = Polynomial.of(inputs[0]).times(gain) + Polynomial.of(states[0]).times(leak) + Polynomial.of(_tidy(rest))
    name = f"{SPIKE}{node.name}"
    conditions[name] = Condition(before - Polynomial.of(_tidy(threshold)), at_zero)
    spike = Polynomial.symbol(name)
    return spike, before - spike.times(_tidy(drop[0]))


class _Answers:
    """One neuron, asked for single numbers."""

    def __init__(self, step: OpaqueStep, tensors: Sequence[Tensor]) -> None:
        self._step, self._tensors = step, tensors

    def _ask(self, current: float, membrane: float) -> tuple[float, float]:
        given = (torch.tensor([value], dtype=torch.float64) for value in (current, membrane))
        with torch.no_grad():
            spike, following = self._step(*given, *self._tensors)
        return float(spike), float(following)

    def membrane(self, current: float, membrane: float) -> float:
        """Returns the next membrane."""
        return self._ask(current, membrane)[1]

    def first_spike(self, gain: float, rest: float) -> tuple[float, bool]:
        """Returns the current at whose membrane the spikes begin, and whether there is one right there."""
        low, high = 0.0, FAR
        if self._ask(low, 0.0)[0] != 0.0 or self._ask(high, 0.0)[0] != 1.0 or not gain > 0:
            raise ValueError(f"{type(self._step.neuron).__name__}, which does not spike once, above a threshold")
        low, high = flip(lambda current: self._ask(current, 0.0)[0], low, high)
        # One of both lies on the threshold itself: that whose membrane is the rounder number.
        at_zero = _is_short(gain * high + rest) or not _is_short(gain * low + rest)
        return (high, True) if at_zero else (low, False)


def flip(spike: Callable[[float], float], low: float, high: float) -> tuple[float, float]:
    """Returns the last number without a spike and the first with one, between two such."""
    while low < (middle := (low + high) / 2) < high:
        low, high = (low, middle) if spike(middle) else (middle, high)
    return low, high


def threshold_of(spike: Callable[[float], float]) -> tuple[float, bool]:
    """Returns where the spikes of a function begin, and whether there is one right there.

    Raises:
        ValueError: They do not.
    """
    if spike(-FAR) != 0.0 or spike(FAR) == 0.0:
        raise ValueError("spikes that do not begin at a threshold")
    low, high = flip(spike, -FAR, FAR)
    return (low, False) if _is_short(low) and not _is_short(high) else (high, True)


def _is_short(value: float) -> bool:
    return _tidy(value) == value


def _tidy(value: float) -> float:
    """Returns the number of float32 next to a number, where the two are the same up to the rounding of float64."""
    short = torch.tensor(value, dtype=torch.float32).item()
    return short if abs(short - value) <= 1e-13 * max(1.0, abs(value)) else value
