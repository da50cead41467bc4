"""What is elementwise, linear or without a slope is so when torch computes it, and nothing else of the table is."""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

import torch
from torch import Tensor

from operations.checks import EMPTY, NO_VALUE, VALUES, close, is_constant, leaves, named, same
from operations.examples import numbers, run, with_facts
from tracecompile.operations import CUTS, FLAT, SHAPE_ONLY, Fact, Operation

# Elementwise.


def is_elementwise(entry: Operation) -> bool:
    x, y = numbers()
    before = run(entry, x, y)
    if not isinstance(before, Tensor):
        return False
    for place in ((0, 0), (1, 2), (2, 1)):
        for operand in (0, 1):
            changed = [x.clone(), y.clone()]
            changed[operand][place] = 9.71
            after = run(entry, *changed)
            if before.shape != after.shape or (before.shape[-2:] != x.shape and not same(before, after)):
                return False
            differing = (before != after) & ~(before.isnan() & after.isnan())
            if differing.any() and differing.nonzero()[:, -2:].tolist() != [list(place)]:
                return False
    return True


@named([entry for entry in with_facts(Fact.ELEMENTWISE, NO_VALUE) if entry.name not in EMPTY])
def test_elementwise_is_so(entry: Operation) -> None:
    assert is_elementwise(entry)


@named([entry for entry in VALUES if not entry.facts & (Fact.ELEMENTWISE | Fact.RANDOM)])
def test_others_are_not_elementwise(entry: Operation) -> None:
    constant = same(run(entry, *numbers()), run(entry, *(value + 0.1 for value in numbers())))
    whole = entry.name in ("real", "imag")  # elementwise as well, but never met where it matters
    assert constant or whole or not is_elementwise(entry)


# Linear.


def mixes(value: Callable[[Tensor, Tensor], Any], along: tuple[int, ...]) -> bool:
    """Tells whether a mean of arguments gives the mean of the values."""
    x, y = numbers()
    generator = torch.Generator().manual_seed(3)
    other = [torch.randn(x.shape, generator=generator, dtype=x.dtype) for _ in range(2)]
    first = [x, y]
    second = [other[k] if k in along else first[k] for k in range(2)]
    mean = [0.3 * one + 0.7 * two for one, two in zip(first, second, strict=True)]
    values = zip(leaves(value(*first)), leaves(value(*second)), strict=True)
    try:
        return close(value(*mean), [0.3 * one.double() + 0.7 * two.double() for one, two in values])
    except RuntimeError:
        return False


def commutes(entry: Operation) -> bool:
    return mixes(lambda x, y: run(entry, x, y), (0, 1))


@named(with_facts(Fact.LINEAR))
def test_linear_commutes_with_a_mean(entry: Operation) -> None:
    assert commutes(entry)


@named([entry for entry in VALUES if not entry.facts & (Fact.LINEAR | SHAPE_ONLY)])
def test_others_do_not(entry: Operation) -> None:
    finite = entry.name == "nan_to_num"  # linear where there is nothing for it to do
    assert is_constant(entry) or finite or entry.facts & Fact.RANDOM or not commutes(entry)


@named(with_facts(Fact.PRODUCT | Fact.QUOTIENT))
def test_product_is_linear_in_each(entry: Operation) -> None:
    value = lambda x, y: run(entry, x, y)  # noqa: E731
    assert mixes(value, (0,))
    assert mixes(value, (1,)) == (Fact.PRODUCT in entry.facts)
    assert not mixes(value, (0, 1))


# Derivatives.


def gradient_of(entry: Operation) -> tuple[bool, bool]:
    """Returns whether the value requires a gradient, and whether that is zero everywhere."""
    x, y = (value.requires_grad_() for value in numbers())
    found = [leaf for leaf in leaves(run(entry, x, y)) if leaf.is_floating_point()]
    if not found or not any(leaf.requires_grad for leaf in found):
        return False, True
    try:
        slopes = torch.autograd.grad(sum(leaf.sum() for leaf in found), (x, y), allow_unused=True)  # type: ignore[arg-type]
    except RuntimeError as fault:
        if "not implemented" not in str(fault):
            raise
        return True, True  # torch has no derivative of it
    return True, all(slope is None or not slope.any() for slope in slopes)


@named([entry for entry in with_facts(CUTS) if Fact.ASKS not in entry.facts])
def test_what_cuts_requires_no_gradient(entry: Operation) -> None:
    assert not gradient_of(entry)[0]


@named([entry for entry in VALUES if not entry.facts & CUTS])
def test_others_do_require_it(entry: Operation) -> None:
    value = leaves(run(entry, *numbers()))
    of_numbers = is_constant(entry) and not entry.facts & Fact.DROPS
    whole = not any(leaf.is_floating_point() or leaf.is_complex() for leaf in value)
    assert of_numbers or whole or gradient_of(entry)[0]


@named(with_facts(FLAT, CUTS))
def test_what_is_flat_has_no_slope(entry: Operation) -> None:
    assert gradient_of(entry)[1]


@named([entry for entry in with_facts(Fact.ELEMENTWISE, FLAT | Fact.FILLS) if entry.name not in ("zero", "fill")])
def test_others_have_a_slope_or_truths(entry: Operation) -> None:
    value = run(entry, *numbers())
    assert (
        not isinstance(value, Tensor)
        or not value.is_floating_point()
        or not gradient_of(entry)[1]
        or (entry.name == "scalar_tensor")
    )


@named(with_facts(Fact.THRESHOLD))
def test_a_threshold_has_few_levels(entry: Operation) -> None:
    x = torch.linspace(-2, 2, 64).double()
    other = torch.full_like(x, 0.3) if Fact.COMPARES in entry.facts else x
    assert 1 < len(run(entry, x, other).unique()) <= 3
