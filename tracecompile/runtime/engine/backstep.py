"""A step of a unit with its backward, in elementary operations."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from dataclasses import dataclass
from typing import Any

import torch
from torch import Tensor, fx
from torch.fx.experimental.proxy_tensor import make_fx

from tracecompile.rules.written import draws_random_numbers
from tracecompile.runtime.engine.divided import Divided, Places, divided, plain
from tracecompile.runtime.engine.flat import Layout
from tracecompile.runtime.engine.traced import Untraceable, written_out


@dataclass(frozen=True)
class Backstep:
    """One step of a unit with its backward.

    Attributes:
        step: (*arguments of the step, *cotangents of its outputs and next carries) to these outputs and carries, and
            the gradients of the wanted arguments.
        text: The same for steps that compute the same.
        wanted: Positions of these arguments.
        parts: The same in parts.
    """

    step: fx.GraphModule
    text: str
    wanted: tuple[int, ...]
    parts: Divided


def trace_backstep(layout: Layout, arguments: Sequence[Tensor], wanted: Sequence[int]) -> Backstep:
    """Writes one step of a unit with its backward, surrogate derivatives and all; at arguments of a scan."""
    given = layout.first_step(arguments)
    given += [torch.ones_like(value) for value in results_of_step(layout.step_of(*given))]
    step = make_fx(both_ways(layout, wanted), tracing_mode="symbolic")(*given)
    if draws_random_numbers(step.graph):
        raise Untraceable("it draws random numbers, which compiled code would draw otherwise")
    step = plain(step, given)
    return Backstep(step, written_out(step), tuple(wanted), divided(step, places_of(layout), wanted))


def both_ways(layout: Layout, wanted: Sequence[int]) -> Callable[..., list[Tensor]]:
    """Returns one step as autograd does it: (*arguments, *cotangents) to its results and the wanted gradients."""
    count = places_of(layout).count

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
        gradients = [torch.zeros_like(s) if g is None else g for s, g in zip(sources, found, strict=True)]
        return [*(value.detach() for value in results), *gradients]

    return run


def places_of(layout: Layout) -> Places:
    """Returns what the arguments of a unit's step are."""
    unit = layout.form.unit
    moving = len(unit.values) + len(unit.carries)
    shared = len(unit.step_statics) - len(layout.constants) + len(layout.held)
    return Places(len(unit.values), moving, moving + shared)


def results_of_step(made: Any) -> list[Tensor]:
    """Returns the outputs and next carries of a unit's step."""
    outputs, carries, *_ = made
    return [*outputs, *carries]
