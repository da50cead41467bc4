"""Figures in words."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from typing import Any

from tracecompile.diagnostics.cost import format_bytes

__all__ = ["count", "format_bytes", "later", "named", "number", "rate", "shape", "shortened"]

NONE, TIMES = "\u2013", " \u00d7 "


def count(number: int, what: str) -> str:
    """Returns ``1 layer`` or ``2 layers``."""
    return f"{number:,} {what}{'s' * (number != 1)}"


def number(value: float | None, form: str = ".3g") -> str:
    """Returns a number, or a dash where there is none."""
    return NONE if value is None else format(value, form)


def rate(value: float | None) -> str:
    """Returns spikes per neuron and step."""
    return NONE if value is None else f"{value:.3f}"


def shape(sizes: Sequence[int]) -> str:
    """Returns sizes with a sign of multiplication between them."""
    return TIMES.join(map(str, sizes)) or "1"


def later(delay: int) -> str:
    """Returns how many steps later a value is read."""
    return count(delay, "step") + " later"


def named(figures: Mapping[str, Any], place: int) -> str:
    """Returns the name of a layer, or of an input where the place is negative."""
    return str(figures["layers"][place]["name"] if place >= 0 else figures["inputs"][-1 - place]["name"])


def shortened(text: str, most: int) -> str:
    """Returns a text that is cut in its middle where it is too long: names differ at their ends."""
    if len(text) <= most:
        return text
    head = (most - 1) // 2
    return f"{text[:head]}…{text[len(text) - (most - 1 - head) :]}"
