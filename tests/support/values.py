"""Nested values: their tensors, their structure, and a loss in which every number counts."""

from __future__ import annotations

import dataclasses
from collections.abc import Iterator
from types import SimpleNamespace
from typing import Any

import torch
from torch import Tensor, nn


def leaves(value: Any) -> Iterator[Tensor]:
    """Yields the tensors of a nested value, in order."""
    if isinstance(value, Tensor):
        yield value
    elif dataclasses.is_dataclass(value) and not isinstance(value, type):
        for field in dataclasses.fields(value):
            yield from leaves(getattr(value, field.name))
    elif isinstance(value, dict):
        for item in value.values():
            yield from leaves(item)
    elif isinstance(value, (tuple, list)):
        for item in value:
            yield from leaves(item)
    elif isinstance(value, SimpleNamespace):
        yield from leaves(vars(value))


def structure(value: Any) -> Any:
    """Returns a nested value without the numbers in its tensors."""
    if isinstance(value, Tensor):
        return tuple(value.shape), value.dtype
    if isinstance(value, dict):
        return type(value).__name__, [(key, structure(item)) for key, item in value.items()]
    if isinstance(value, (tuple, list)):
        return type(value).__name__, [structure(item) for item in value]
    if dataclasses.is_dataclass(value) and not isinstance(value, type):
        return type(value).__name__, [structure(getattr(value, field.name)) for field in dataclasses.fields(value)]
    return ("SimpleNamespace", structure(vars(value))) if isinstance(value, SimpleNamespace) else value


def equal(one: Tensor, other: Tensor) -> bool:
    """Tells whether two tensors are the same bit for bit; NaN equals NaN."""
    return one.shape == other.shape and bool(((one == other) | (one.isnan() & other.isnan())).all())


def all_equal(one: Any, other: Any) -> bool:
    """Compares the tensors of two nested values bit for bit."""
    pairs = zip(leaves(one), leaves(other), strict=True)
    return structure(one) == structure(other) and all(equal(*pair) for pair in pairs)


def loss_of(results: Any) -> Tensor:
    """Returns a loss in which every number that was returned has a weight and a curvature of its own."""
    generator = torch.Generator().manual_seed(11)
    terms = [torch.zeros(())]
    for leaf in leaves(results):
        if leaf.is_floating_point():
            weight = torch.rand(leaf.shape, generator=generator, dtype=torch.float64).to(leaf) - 0.3
            terms.append((weight * leaf + 0.1 * leaf * leaf).sum() / max(leaf.numel(), 1) ** 0.5)
    return torch.stack([term.to(terms[-1]) for term in terms]).sum()


def gradients(owner: nn.Module, results: Any) -> dict[str, Tensor | None]:
    """Returns the gradients of all parameters of the model that learn, by name."""
    owner.zero_grad(set_to_none=True)
    loss_of(results).backward()
    found = {name: each.grad for name, each in owner.named_parameters() if each.requires_grad}
    owner.zero_grad(set_to_none=True)
    return found
