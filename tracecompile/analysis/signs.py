"""Signs of derivatives: which way one value moves another, as far as that is the same for all."""

from __future__ import annotations

from collections.abc import Iterable, Mapping
from typing import Any

import torch
from torch import Tensor, fx

from tracecompile.program import example_value


def apart(value: Any) -> Any:
    """Returns a value that no gradient leads through."""
    return value.detach().clone() if isinstance(value, Tensor) else value


def leaves_at(states: Iterable[fx.Node], point: int) -> dict[fx.Node, Any]:
    """Returns values of some states: those of the example, or of another point beside it."""
    generator = torch.Generator().manual_seed(point)
    leaves = {}
    for state in states:
        leaf = example_value(state).detach().clone()
        if point and leaf.is_floating_point():
            aside = torch.rand(leaf.shape, generator=generator, dtype=torch.float64).to(leaf)
            leaf += (aside - 0.5) * (1 + leaf.abs())
        leaves[state] = leaf.requires_grad_() if leaf.is_floating_point() else leaf
    return leaves


def signs_of(values: Iterable[Tensor], leaves: Mapping[fx.Node, Tensor]) -> dict[fx.Node, float]:
    """Returns the sign of the derivative of the sum of some values to each state, 0 where neurons do not agree."""
    terms = [value.sum() for value in values if isinstance(value, Tensor) and value.requires_grad]
    wanted = {state: leaf for state, leaf in leaves.items() if leaf.requires_grad}
    if not terms or not wanted:
        return dict.fromkeys(leaves, 0.0)
    found = torch.autograd.grad(sum(terms[1:], terms[0]), list(wanted.values()), allow_unused=True, retain_graph=True)
    signs = {
        state: 0.0 if each is None else agreed(each.sign().unique().tolist())
        for state, each in zip(wanted, found, strict=True)
    }
    return {state: signs.get(state, 0.0) for state in leaves}


def agreed(signs: Iterable[float]) -> float:
    """Returns the one sign that is among some signs and zeros, 0 where both are or none is."""
    found = {sign for sign in signs if sign}
    return found.pop() if len(found) == 1 else 0.0
