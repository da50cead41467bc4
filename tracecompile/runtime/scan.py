"""The scan of one unit over a piece of time: its steps, and the derivatives of its cores carried along with them.

Everything about a bin is left out, so that one function serves every bin and every number of bins. With one bin the
tangents themselves are carried. With several, what is carried is what the piece does to any tangents: with P_t the
product of the Jacobians J_ss since its beginning,

    e[c] at the end  =  P e[c]  +  E [c is now],      sum of the responses to c  =  Q e[c]  +  R [c is now],

where E and R start from zero and Q is the sum of J_ys P_(t-1). So the cost of a step does not depend on the number of
bins, and the bins themselves are touched once per piece.
"""

from __future__ import annotations

from collections.abc import Callable, Sequence
from dataclasses import dataclass
from typing import Any

import torch
from torch import Tensor

from tracecompile.runtime.statistics import accumulator_dtype

Slope = Tensor | float
"""A derivative: per neuron, shared by all of them, or a number."""

Slopes = dict[tuple[str, str], Slope]
"""By (result, variable); what is missing is zero."""

FROM = "from:"
"""Prefix of the variables that stand for a state at the beginning of the piece."""


@dataclass(frozen=True)
class CoreScan:
    """What is carried along for one core.

    Attributes:
        name: Of the layer.
        outputs: Its outputs, and ``first_output``, where they begin among those of the unit.
        states: Positions of its states among the carries of the unit, by name.
        rows: As in its Jacobian.
        variables: Currents, parameters and initial states.
        through: Whether P and Q are wanted, and everything else starts from zero.
        decay: Of the sums of the responses.
        profiles: Whether the mean responses of every step are wanted.
    """

    name: str
    outputs: tuple[str, ...]
    first_output: int
    states: dict[str, int]
    rows: dict[tuple[str, str], int | float]
    variables: tuple[str, ...]
    through: bool
    decay: float | None
    profiles: bool

    def reached(self) -> tuple[tuple[str, str], ...]:
        """Returns the pairs (variable, state) whose tangent may be other than zero."""
        found = {(f"init:{s}", s) for s in self.states if f"init:{s}" in self.variables}
        pairs = [(variable, state) for variable in self.variables for state in self.states]
        positions = {state: f"next:{position}" for position, state in enumerate(self.states)}
        while True:
            more = {
                (variable, state)
                for variable, state in pairs
                if (positions[state], variable) in self.rows
                or any((positions[state], s) in self.rows and (variable, s) in found for s in self.states)
            }
            if more <= found:
                return tuple(pair for pair in pairs if pair in found)
            found |= more


@dataclass
class CoreResult:
    """What the scan found out about one core.

    Attributes:
        tangents: At the end, by (variable, state).
        sums: Of the responses over the piece, by (output, variable).
        last: Responses of the last step.
        derivatives: Of the last step, as the step returned them.
        profiles: Means over the neurons of the response (and ``gain of <output>``) of every step, (steps,).
    """

    tangents: dict[tuple[str, str], Tensor]
    sums: dict[tuple[str, str], Tensor]
    last: dict[tuple[str, str], Tensor]
    derivatives: tuple[Tensor, ...]
    profiles: dict[tuple[str, str], Tensor]


@dataclass
class ScanResult:
    """What a scan leaves behind.

    Attributes:
        outputs: Of the unit, (steps, *shape) each.
        carries: Next carries of the unit.
        norms: (means, variances) of its normalisations, (steps, channels) each.
        cores: One per CoreScan.
    """

    outputs: list[Tensor]
    carries: list[Tensor]
    norms: list[tuple[Tensor, Tensor]]
    cores: list[CoreResult]


def scan(
    step: Callable[..., Any],
    cores: Sequence[CoreScan],
    layers: Sequence[int],
    steps: int,
    values: Sequence[Tensor],
    carries: Sequence[Tensor],
    statics: Sequence[Any],
    tangents: Sequence[dict[tuple[str, str], Tensor]],
) -> ScanResult:
    """Runs a unit over a piece of time.

    Args:
        step: (*values, *carries, *statics) -> (outputs, next carries, derivatives of each layer, batch statistics).
        cores: What to carry along.
        layers: Which of the layers of the unit each core belongs to.
        steps: How many.
        values: (steps, *shape) each.
        carries: At the beginning.
        statics: What does not change.
        tangents: At the beginning, per core; ignored where ``through``.
    """
    running = [_Running(core, given) for core, given in zip(cores, tangents, strict=True)]
    made: list[list[Tensor]] = []
    statistics: list[list[tuple[Tensor, Tensor]]] = []
    entries: Any = ()
    now: Sequence[Tensor] = carries
    for time in range(steps):
        outputs, now, entries, norms = step(*(value[time] for value in values), *now, *statics)
        for core, layer in zip(running, layers, strict=True):
            core.advance(entries[layer], outputs, now)
        made.append(outputs)
        statistics.append(norms)
    return ScanResult(
        [torch.stack(rows) for rows in zip(*made, strict=True)],
        list(now),
        [
            (torch.stack([mean for mean, _ in pairs]), torch.stack([variance for _, variance in pairs]))
            for pairs in zip(*statistics, strict=True)
        ],
        [core.result(made[-1], now, entries[layer]) for core, layer in zip(running, layers, strict=True)],
    )


class _Running:
    """The derivatives of one core while time passes."""

    def __init__(self, core: CoreScan, tangents: dict[tuple[str, str], Tensor]) -> None:
        self.core = core
        self.states = tuple(core.states)
        self.variables = core.variables
        self.tangents: Slopes = dict(tangents)
        if core.through:
            self.variables += tuple(f"{FROM}{state}" for state in self.states)
            self.tangents = {(f"{FROM}{state}", state): 1.0 for state in self.states}
        self.sums: Slopes = {}
        self.last: Slopes = {}
        self.means: dict[tuple[str, str], list[Slope]] = {}

    def advance(self, entries: Sequence[Tensor], outputs: Sequence[Tensor], carries: Sequence[Tensor]) -> None:
        """Takes one step."""
        core, first = self.core, self.core.first_output
        values = dict(zip(core.outputs, outputs[first : first + len(core.outputs)], strict=True))
        values |= {f"next:{place}": carries[position] for place, position in enumerate(core.states.values())}
        slopes: Slopes = {}
        for key, row in core.rows.items():
            slope = entries[row] if isinstance(row, int) else row
            slopes[key] = slope.to(_precision(slope, values[key[0]])) if isinstance(slope, Tensor) else slope
        self.last = {
            (output, variable): change
            for output in core.outputs
            for variable in self.variables
            if (change := self._change(slopes, output, variable)) is not None
        }
        for key, change in self.last.items():
            before = self.sums.get(key)
            kept = before if before is None or core.decay is None else before * core.decay
            self.sums[key] = change if kept is None else kept + change
        if core.profiles:
            self._note(slopes, values)
        self.tangents = {
            (variable, state): change
            for variable in self.variables
            for place, state in enumerate(self.states)
            if (change := self._change(slopes, f"next:{place}", variable)) is not None
        }

    def _change(self, slopes: Slopes, result: str, variable: str) -> Slope | None:
        total: Slope | None = None
        for state in self.states:
            slope, tangent = slopes.get((result, state)), self.tangents.get((variable, state))
            if slope is not None and tangent is not None:
                total = _plus(total, _times(slope, tangent))
        direct = slopes.get((result, variable))
        return total if direct is None else _plus(total, direct)

    def _note(self, slopes: Slopes, values: dict[str, Tensor]) -> None:
        for output in self.core.outputs:
            for variable in self.core.variables:
                found = {output: self.last.get((output, variable)), f"gain of {output}": slopes.get((output, variable))}
                for name, value in found.items():
                    if value is not None:
                        mean = value.mean() if isinstance(value, Tensor) else value
                        self.means.setdefault((name, variable), []).append(mean)

    def result(self, outputs: Sequence[Tensor], carries: Sequence[Tensor], entries: Sequence[Tensor]) -> CoreResult:
        """Returns what was found, every value in the shape of what it is the derivative of."""
        core = self.core
        states = {state: carries[position] for state, position in core.states.items()}
        first = core.first_output
        values = dict(zip(core.outputs, outputs[first : first + len(core.outputs)], strict=True))
        sums = {key: _spread(value, values[key[0]]) for key, value in self.sums.items()}
        return CoreResult(
            {key: _spread(value, states[key[1]]) for key, value in self.tangents.items()},
            sums,
            {key: _spread(value, values[key[0]]) for key, value in self.last.items()},
            tuple(entries),
            {key: _stacked(rows, next(iter(values.values()))) for key, rows in self.means.items()},
        )


def _precision(slope: Tensor, value: Tensor) -> torch.dtype:
    return torch.promote_types(slope.dtype, accumulator_dtype(value.dtype))


def _times(left: Slope, right: Slope) -> Slope:
    if not isinstance(left, Tensor) and left == 1.0:
        return right
    return left if not isinstance(right, Tensor) and right == 1.0 else left * right


def _plus(left: Slope | None, right: Slope) -> Slope:
    return right if left is None else left + right


def _spread(value: Slope, like: Tensor) -> Tensor:
    dtype = accumulator_dtype(like.dtype)
    if not isinstance(value, Tensor):
        return torch.full_like(like, value, dtype=dtype)
    return value.to(dtype).expand_as(like)


def _stacked(values: Sequence[Slope], like: Tensor) -> Tensor:
    dtype = accumulator_dtype(like.dtype)
    rows = [v if isinstance(v, Tensor) else torch.full((), v, dtype=dtype, device=like.device) for v in values]
    return torch.stack([row.to(dtype) for row in rows])
