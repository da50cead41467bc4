"""Recurrences without spikes in which neurons hear each other: gates and matrices between the values of a state."""

from __future__ import annotations

from collections.abc import Callable, Collection
from typing import Any

import torch
from torch import Tensor, fx
from torch.utils import _pytree as pytree

from tracecompile.analysis.core_operators import applied, unheard
from tracecompile.analysis.graph_view import StepView
from tracecompile.operations import FLAT, has
from tracecompile.program import StepProgram, example_value


def crossed_recurrence(
    program: StepProgram, view: StepView, may_join: Callable[[fx.Node], bool], spiking: Collection[fx.Node]
) -> fx.Node | None:
    """Returns what mixes the neurons of a recurrence in which nothing spikes; None where there is no such recurrence.

    What no gradient comes back through is no recurrence here, and what only moves numbers about (the halves of a
    state, a delay line) mixes none.

    Args:
        program: As captured.
        view: Of its step.
        may_join: Tells which nodes are computed neuron by neuron.
        spiking: Nodes and states of the cores that spike.
    """
    for group in view.cycles(lambda node: not has(node, FLAT)):
        if group.isdisjoint(spiking):
            mixed = (node for node in group if not may_join(node) and not _moves_numbers(program, node))
            first = min(mixed, key=view.position.__getitem__, default=None)
            if first is not None:
                return first
    return None


def _moves_numbers(program: StepProgram, node: fx.Node) -> bool:
    """Probes an operation: every number that it gives is one that it takes, and which one does not depend on them."""
    if node.op == "placeholder":
        return True
    leaves, spec = pytree.tree_flatten(fx.map_arg((node.args, node.kwargs), example_value))
    places = [place for place, leaf in enumerate(leaves) if _has_numbers(leaf)]
    generator = torch.Generator().manual_seed(0)
    drawn = [torch.rand(leaves[place].shape, generator=generator, dtype=torch.float64) + 0.5 for place in places]

    def called(sign: int) -> list[Any]:
        given = list(leaves)
        for place, numbers in zip(places, drawn, strict=True):
            given[place] = (sign * numbers).to(leaves[place])
        module = program.resolve(str(node.target)) if node.op == "call_module" else None
        args, kwargs = pytree.tree_unflatten(given, spec)
        return pytree.tree_leaves(applied(node, args, kwargs, module))

    try:
        with unheard():
            plain, negative = called(1), called(-1)
    except Exception:  # whatever it has against being run by itself: it is not known then
        return False
    taken = torch.cat([numbers.to(leaves[place]).flatten() for place, numbers in zip(places, drawn, strict=True)])
    taken = torch.cat([_as_real(taken), torch.zeros(1).to(_as_real(taken))])
    return all(
        _has_numbers(one)
        and bool(torch.isin(_as_real(one).to(taken), taken).all())
        and torch.equal(_as_real(one), -_as_real(other))
        for one, other in zip(plain, negative, strict=True)
    )


def _has_numbers(value: Any) -> bool:
    return isinstance(value, Tensor) and (value.is_floating_point() or value.is_complex())


def _as_real(value: Tensor) -> Tensor:
    return torch.view_as_real(value).flatten() if value.is_complex() else value.flatten()
