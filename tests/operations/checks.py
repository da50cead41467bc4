"""What the tests of the facts have in common."""

from __future__ import annotations

from typing import Any

import pytest
import torch
from torch import Tensor
from torch.utils import _pytree as pytree

from operations.examples import numbers, run
from tracecompile.operations import OPERATIONS, Fact, Operation

NO_VALUE = Fact.READS | Fact.ASKS | Fact.SELECTS | Fact.SIZE
"""What is no tensor, or of another size at each call."""

EMPTY = ("empty", "empty_like", "new_empty", "new")
"""What nobody has written is anything."""

VALUES = [entry for entry in OPERATIONS if not entry.facts & NO_VALUE and entry.name not in EMPTY]


def named(entries: list[Operation]) -> Any:
    return pytest.mark.parametrize("entry", entries, ids=lambda entry: entry.name)


def leaves(value: Any) -> list[Tensor]:
    return [leaf for leaf in pytree.tree_leaves(value) if isinstance(leaf, Tensor)]


def same(one: Any, other: Any) -> bool:
    pairs = zip(leaves(one), leaves(other), strict=True)
    return all(a.shape == b.shape and torch.equal(a.nan_to_num(), b.nan_to_num()) for a, b in pairs)


def close(one: Any, other: Any) -> bool:
    within = 2e-2 if any(leaf.dtype in (torch.half, torch.bfloat16) for leaf in leaves(one)) else 1e-5
    return all(
        a.shape == b.shape and torch.allclose(a.double(), b.double(), rtol=within, atol=within, equal_nan=True)
        for a, b in zip(leaves(one), leaves(other), strict=True)
    )


def is_constant(entry: Operation) -> bool:
    """Tells whether the numbers that an operation is given have no part in its value."""
    x, y = numbers()
    others = ((x.flip(0), y.flip(0)), (y, y), (0 * x, 0 * y))
    return all(same(run(entry, x, y), run(entry, *each)) for each in others)
