"""Why a trace ended early: the search for the time axis tries the next axis then."""

from __future__ import annotations

from tracecompile.errors import ConversionError


class TooManySteps(Exception):
    """The loop ran longer than the example's chosen length: another axis is the time axis."""


class ModelFailure(ConversionError):
    """The user's code raised while it ran on the example."""
