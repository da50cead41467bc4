"""Polynomials in the currents, states and spikes of a neuron, with a coefficient per neuron."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass

import torch
from torch import Tensor

SPIKE = "!"
"""Before the symbols that are 0 or 1, so that they equal their squares."""
CLOSE = 1e-9
"""By what part of the larger one two coefficients may differ: they are computed in float64."""

Monomial = tuple[str, ...]


class NotLinear(ValueError):
    """Two symbols of which neither is a spike were multiplied."""


class Polynomial:
    """A sum of products of symbols.

    Attributes:
        terms: Coefficients by monomial, each a sorted tuple of symbols; () is the constant.
    """

    def __init__(self, terms: Mapping[Monomial, Tensor]) -> None:
        self.terms = {key: value for key, value in terms.items() if bool((value != 0).any())}

    @classmethod
    def of(cls, value: Polynomial | Tensor | float) -> Polynomial:
        """Returns a number, or a tensor of numbers, as a polynomial."""
        if isinstance(value, Polynomial):
            return value
        return cls({(): torch.as_tensor(value).detach().cpu().double()})

    @classmethod
    def symbol(cls, name: str) -> Polynomial:
        """Returns one symbol."""
        return cls({(name,): torch.ones((), dtype=torch.float64)})

    def __add__(self, other: Polynomial) -> Polynomial:
        found = dict(self.terms)
        for key, value in other.terms.items():
            found[key] = found[key] + value if key in found else value
        return Polynomial(found)

    def __mul__(self, other: Polynomial) -> Polynomial:
        total = Polynomial({})
        for key, value in self.terms.items():
            for name, factor in other.terms.items():
                linear = [symbol for symbol in (*key, *name) if not symbol.startswith(SPIKE)]
                if len(linear) > 1:
                    raise NotLinear(f"a product of {linear[0]} and {linear[1]}")
                spikes = {symbol for symbol in (*key, *name) if symbol.startswith(SPIKE)}
                total += Polynomial({tuple(sorted({*spikes, *linear})): value * factor})
        return total

    def times(self, factor: float | Tensor) -> Polynomial:
        """Returns the product with numbers."""
        return self * Polynomial.of(factor)

    def __sub__(self, other: Polynomial) -> Polynomial:
        return self + other.times(-1.0)

    def at(self, *symbols: str) -> Tensor:
        """Returns the coefficient of a product of symbols, of nothing the constant."""
        return self.terms.get(tuple(sorted(symbols)), torch.zeros((), dtype=torch.float64))

    @property
    def symbols(self) -> set[str]:
        """All that stand in it."""
        return {symbol for key in self.terms for symbol in key}

    @property
    def spikes(self) -> set[str]:
        """Those of them that are spikes."""
        return {symbol for symbol in self.symbols if symbol.startswith(SPIKE)}

    def replaced(self, symbol: str, by: Polynomial) -> Polynomial:
        """Returns it with a polynomial in a symbol's place."""
        total = Polynomial({})
        for key, value in self.terms.items():
            rest = Polynomial({tuple(each for each in key if each != symbol): value})
            total += rest * by if symbol in key else rest
        return total

    def without(self, symbol: str) -> Polynomial:
        """Returns the terms that do not have a symbol."""
        return Polynomial({key: value for key, value in self.terms.items() if symbol not in key})

    def cleaned(self, like: Polynomial | None = None) -> Polynomial:
        """Returns the terms that are more than the rounding of the others, or of those of another polynomial."""
        scale = self._scale(like or self)
        return Polynomial({key: value for key, value in self.terms.items() if not is_zero(value, scale)})

    def equals(self, other: Polynomial) -> bool:
        """Tells whether two are the same up to the rounding of float64."""
        keys = {*self.terms, *other.terms}
        return all(close(self.at(*key), other.at(*key), self._scale(other)) for key in keys)

    def _scale(self, other: Polynomial) -> float:
        values = [float(value.abs().max()) for value in (*self.terms.values(), *other.terms.values())]
        return max(values, default=1.0)


@dataclass(frozen=True)
class Condition:
    """When a spike is made: where ``argument`` is above zero, or also at zero."""

    argument: Polynomial
    at_zero: bool


def close(one: Tensor, other: Tensor, scale: float = 0.0) -> bool:
    """Tells whether numbers are the same up to the rounding of float64."""
    bound = torch.maximum(one.abs(), other.abs()).clamp(min=scale)
    return bool(((one - other).abs() <= CLOSE * bound).all())


def is_zero(value: Tensor, scale: float = 1.0) -> bool:
    """Tells whether numbers are zeros up to the rounding of float64."""
    return bool((value.abs() <= CLOSE * scale).all())
