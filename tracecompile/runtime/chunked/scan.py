"""The scan of one unit over a piece of time: its steps, and the derivatives of its cores carried along with them."""

from __future__ import annotations

import itertools
from collections.abc import Callable, Iterator, Sequence
from typing import Any

import torch
from torch import Tensor

from tracecompile.runtime.chunked.core_scan import GAIN, Carried, CoreResult, CoreScan, Pair, ScanResult, Slope
from tracecompile.runtime.statistics import accumulator_dtype

_FULL = (torch.float32, torch.float64)
"""Precisions in which values are accumulated as they are."""


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
