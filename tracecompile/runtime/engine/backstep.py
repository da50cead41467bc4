"""A scan backward, as a function of a flat list of tensors, the form in which it is traced and compiled."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from dataclasses import dataclass
from itertools import islice
from typing import Any

import torch
from torch import Tensor, fx
from torch.fx.experimental.proxy_tensor import make_fx

from tracecompile.rules.written import draws_random_numbers
from tracecompile.runtime.engine.flat import Layout
from tracecompile.runtime.engine.traced import Untraceable, written_out

Run = Callable[..., Sequence[Tensor]]


@dataclass(frozen=True)
class Backstep:
    """One step of a unit backward, in elementary operations.

    Attributes:
        step: (*arguments of the step, *cotangents of its outputs and next carries) to the gradients of the wanted ones.
        text: The same for steps that compute the same.
        wanted: Positions of the arguments whose gradients these are.
    """

    step: fx.GraphModule
    text: str
    wanted: tuple[int, ...]


def trace_backstep(layout: Layout, arguments: Sequence[Tensor], wanted: Sequence[int]) -> Backstep:
    """Writes one step of a unit backward, surrogate derivatives and all; at arguments of a scan."""
    given = layout.first_step(arguments)
    cotangents = [torch.ones_like(value) for value in results_of_step(layout.step_of(*given))]
    step = make_fx(backward_of(layout, wanted), tracing_mode="symbolic")(*given, *cotangents)
    if draws_random_numbers(step.graph):
        raise Untraceable("it draws random numbers, which compiled code would draw otherwise")
    return Backstep(step, written_out(step), tuple(wanted))


def backward_of(layout: Layout, wanted: Sequence[int]) -> Callable[..., list[Tensor]]:
    """Returns one step backward as autograd does it: (*arguments, *cotangents) to the gradients of the wanted ones."""
    count = len(layout.form.unit.values) + len(layout.form.unit.carries)
    count += len(layout.form.unit.step_statics) - len(layout.constants) + len(layout.held)

    def run(*flat: Tensor) -> list[Tensor]:
        given, cotangents = list(flat[:count]), flat[count:]
        for place in wanted:
            given[place] = given[place].detach().requires_grad_()
        sources = [given[place] for place in wanted]
        with torch.enable_grad():
            results = results_of_step(layout.step_of(*given))
        pairs = [(value, signal) for value, signal in zip(results, cotangents, strict=True) if value.requires_grad]
        found: Sequence[Tensor | None] = [None] * len(sources)
        if pairs:
            values, signals = zip(*pairs, strict=True)
            found = torch.autograd.grad(values, sources, signals, allow_unused=True)
        return [torch.zeros_like(s) if g is None else g for s, g in zip(sources, found, strict=True)]

    return run


def joint_scan(layout: Layout, step: Run, back: Backstep, steps: int) -> Callable[..., list[Tensor]]:
    """Returns a scan of some steps backward, from what it starts with.

    Args:
        layout: Of the unit.
        step: One step forward.
        back: One step backward.
        steps: How many.

    Returns:
        (*arguments of the scan, *cotangents of its outputs (steps, *shape) and last carries) to the gradients of the
        wanted arguments.
    """
    unit = layout.form.unit
    first, last = len(unit.values), len(unit.values) + len(unit.carries)

    def run(*flat: Tensor) -> list[Tensor]:
        left = iter(flat)
        values, carries = list(islice(left, first)), list(islice(left, last - first))
        shared = list(islice(left, len(unit.step_statics) - len(layout.constants) + len(layout.held)))
        signals, states = list(islice(left, len(unit.outputs))), list(left)
        before = []
        for time in range(steps):
            before.append([*(value[time] for value in values), *carries])
            carries = list(step(*before[-1], *shared)[1])
        rows: dict[int, list[Tensor]] = {place: [] for place in back.wanted if place < first}
        sums: dict[int, Tensor] = {}
        for time in reversed(range(steps)):
            found = back.step(*before[time], *shared, *(signal[time] for signal in signals), *states)
            of = dict(zip(back.wanted, found, strict=True))
            states = [of.get(place, state) for place, state in enumerate(states, first)]
            for place, gradient in of.items():
                if place < first:
                    rows[place].append(gradient)
                elif place >= last:
                    sums[place] = sums[place] + gradient if place in sums else gradient
        moved = dict(enumerate(states, first))
        return [
            torch.stack(rows[place][::-1]) if place < first else moved[place] if place < last else sums[place]
            for place in back.wanted
        ]

    return run


def results_of_step(made: Any) -> list[Tensor]:
    """Returns the outputs and next carries of a unit's step."""
    outputs, carries, *_ = made
    return [*outputs, *carries]
