"""The scan of one unit over a piece of time: its steps, and the derivatives of its cores carried along with them.

Everything about a bin is left out, so that one function serves every bin and every number of bins. With one bin the
tangents themselves are carried. With several, what is carried is what the time since the last fold into the record does
to any tangents: with P_t the product of the Jacobians J_ss since then,

    e[c] at the end  =  P e[c]  +  E [c is now],      sum of the responses to c  =  Q e[c]  +  R [c is now],

where E and R start from zero and Q is the sum of J_ys P_(t-1). So the cost of a step does not depend on the number of
bins, and the bins themselves are touched once each.
"""

from __future__ import annotations

import itertools
from collections.abc import Callable, Iterator, Sequence
from dataclasses import dataclass
from functools import cached_property
from typing import Any

import torch
from torch import Tensor

from tracecompile.runtime.statistics import accumulator_dtype

Slope = Tensor | float
"""A derivative: per neuron, shared by all of them, or a number."""

Pair = tuple[str, str]
"""(result, variable), or (variable, state) of a tangent."""

FROM = "from:"
"""Prefix of the variables that stand for a state where the carrying began."""

_FULL = (torch.float32, torch.float64)
"""Precisions in which values are accumulated as they are."""

GAIN = "gain of "
"""Prefix of the profiles of the answer within a step."""


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
        profiles: Whether the responses of every step are wanted.
    """

    name: str
    outputs: tuple[str, ...]
    first_output: int
    states: dict[str, int]
    rows: dict[Pair, int | float]
    variables: tuple[str, ...]
    through: bool
    decay: float | None
    profiles: bool

    @cached_property
    def carried(self) -> tuple[str, ...]:
        """The variables, and the states where the carrying began if P and Q are wanted."""
        return self.variables + (tuple(f"{FROM}{state}" for state in self.states) if self.through else ())

    @cached_property
    def reached(self) -> tuple[Pair, ...]:
        """The pairs (variable, state) whose tangent may be other than zero."""
        starts = {f"{prefix}{state}": state for state in self.states for prefix in ("init:", FROM)}
        found = {(variable, starts[variable]) for variable in self.carried if variable in starts}
        pairs = [(variable, state) for variable in self.carried for state in self.states]
        positions = {state: f"next:{place}" for place, state in enumerate(self.states)}
        while True:
            more = {pair for pair in pairs if self._answers(positions[pair[1]], pair[0], found)}
            if more <= found:
                return tuple(pair for pair in pairs if pair in found)
            found |= more

    @cached_property
    def answered(self) -> tuple[Pair, ...]:
        """The pairs (output, variable) whose response may be other than zero."""
        found = set(self.reached)
        pairs = ((output, variable) for output in self.outputs for variable in self.carried)
        return tuple(pair for pair in pairs if self._answers(*pair, found))

    def _answers(self, result: str, variable: str, tangents: set[Pair]) -> bool:
        through_state = any((result, s) in self.rows and (variable, s) in tangents for s in self.states)
        return (result, variable) in self.rows or through_state

    @cached_property
    def profiled(self) -> tuple[Pair, ...]:
        """The pairs of which every step is wanted: (output, variable), and (``gain of <output>``, variable)."""
        if not self.profiles:
            return ()
        pairs = [(output, variable) for output in self.outputs for variable in self.variables]
        responses = [pair for pair in pairs if pair in self.answered]
        gains = [(f"{GAIN}{output}", variable) for output, variable in pairs if (output, variable) in self.rows]
        return (*responses, *gains)

    def structure(self) -> tuple[Any, ...]:
        """Returns everything that the code of a scan depends on but the names, for which their positions stand."""
        places = {name: place for place, name in enumerate((*self.outputs, *self.carried, *self.states))}
        rows = ((places.get(result, result), places[variable], row) for (result, variable), row in self.rows.items())
        reached = ((places[variable], places[state]) for variable, state in self.reached)
        sizes = (len(self.outputs), len(self.carried), self.first_output, tuple(self.states.values()))
        return (tuple(rows), tuple(reached), sizes, self.decay, self.profiles)


@dataclass
class Carried:
    """Derivatives of one core on their way: tangents as in ``reached``, sums of responses as in ``answered``."""

    tangents: list[Tensor]
    sums: list[Tensor]


@dataclass
class CoreResult:
    """What the scan found out about one core.

    Attributes:
        carried: To go on with.
        last: Responses of the last step, as in ``answered``.
        derivatives: Of the last step, as the step returned them.
        profiles: As in ``profiled``, of every step: (steps,) means, or (steps, *shape) of what is to be averaged.
    """

    carried: Carried
    last: list[Tensor]
    derivatives: list[Tensor]
    profiles: list[Tensor]


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
    carried: Sequence[Carried],
    profile: Callable[[Tensor], Tensor] = torch.mean,
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
        carried: At the beginning, per core.
        profile: What is kept of a step's entry of a profile; of its mean, nothing is left to be done.
    """
    running = [_Running(core, given, profile) for core, given in zip(cores, carried, strict=True)]
    made: list[list[Tensor]] = []
    statistics: list[list[tuple[Tensor, Tensor]]] = []
    entries: Any = ()
    now: Sequence[Tensor] = carries
    given = zip(*(value.unbind() for value in values), strict=True) if values else itertools.repeat((), steps)
    for current in given:
        outputs, now, entries, norms = step(*current, *now, *statics)
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
        [core.result(entries[layer]) for core, layer in zip(running, layers, strict=True)],
    )


class _Running:
    """The derivatives of one core while time passes."""

    def __init__(self, core: CoreScan, carried: Carried, profile: Callable[[Tensor], Tensor]) -> None:
        self.core, self.profile = core, profile
        self.tangents: dict[Pair, Tensor] = dict(zip(core.reached, carried.tangents, strict=True))
        self.sums = carried.sums
        self.last: list[Tensor] = []
        self.profiles: list[list[Tensor]] = [[] for _ in core.profiled]

    def advance(self, entries: Sequence[Tensor], outputs: Sequence[Tensor], carries: Sequence[Tensor]) -> None:
        """Takes one step."""
        core, first = self.core, self.core.first_output
        values = dict(zip(core.outputs, outputs[first : first + len(core.outputs)], strict=True))
        values |= {f"next:{place}": carries[position] for place, position in enumerate(core.states.values())}
        slopes: dict[Pair, Slope] = {}
        for key, row in core.rows.items():
            slope = entries[row] if isinstance(row, int) else row
            slopes[key] = _precise(slope, values[key[0]]) if isinstance(slope, Tensor) else slope
        self.last = [self._change(slopes, output, variable, values[output]) for output, variable in core.answered]
        kept = self.sums if core.decay is None else [total * core.decay for total in self.sums]
        self.sums = [total + change for total, change in zip(kept, self.last, strict=True)]
        for rows, value in zip(self.profiles, self._profiled(slopes), strict=True):
            rows.append(self.profile(value))
        places = {state: f"next:{place}" for place, state in enumerate(core.states)}
        self.tangents = {
            (variable, state): self._change(slopes, places[state], variable, values[places[state]])
            for variable, state in core.reached
        }

    def _change(self, slopes: dict[Pair, Slope], result: str, variable: str, like: Tensor) -> Tensor:
        total = slopes.get((result, variable))
        for state in self.core.states:
            slope, tangent = slopes.get((result, state)), self.tangents.get((variable, state))
            if slope is not None and tangent is not None:
                total = _plus_product(total, slope, tangent)
        return _spread(0.0 if total is None else total, like)

    def _profiled(self, slopes: dict[Pair, Slope]) -> Iterator[Tensor]:
        core = self.core
        responses = dict(zip(core.answered, self.last, strict=True))
        for name, variable in core.profiled:
            output = name.removeprefix(GAIN)
            value = responses[name, variable] if name == output else slopes[output, variable]
            yield _whole(value, self.last[0])

    def result(self, entries: Sequence[Tensor]) -> CoreResult:
        """Returns what was found, every value in the shape of what it is the derivative of."""
        tangents = [self.tangents[pair] for pair in self.core.reached]
        profiles = [torch.stack(rows) for rows in self.profiles]
        return CoreResult(Carried(tangents, self.sums), self.last, list(entries), profiles)


def _precise(slope: Tensor, value: Tensor) -> Tensor:
    """Returns a derivative in the precision of what accumulates it."""
    if slope.dtype == value.dtype and slope.dtype in _FULL:
        return slope
    return slope.to(torch.promote_types(slope.dtype, accumulator_dtype(value.dtype)))


def _plus_product(total: Slope | None, slope: Slope, tangent: Tensor) -> Slope:
    if total is None:
        return tangent if not isinstance(slope, Tensor) and slope == 1.0 else slope * tangent
    if isinstance(total, Tensor) and isinstance(slope, Tensor) and total.dtype == slope.dtype == tangent.dtype:
        return torch.addcmul(total, slope, tangent)
    return total + slope * tangent


def _spread(value: Slope, like: Tensor) -> Tensor:
    if isinstance(value, Tensor):
        if value.dtype == like.dtype and value.dtype in _FULL and value.shape == like.shape:
            return value
        return value.to(accumulator_dtype(like.dtype)).expand_as(like)
    return torch.full_like(like, value, dtype=accumulator_dtype(like.dtype))


def _whole(value: Slope, like: Tensor) -> Tensor:
    return value if isinstance(value, Tensor) else torch.full((), value, dtype=like.dtype, device=like.device)
