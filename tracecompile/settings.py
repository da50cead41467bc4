"""The options of convert: what each may be, and which of them have a meaning beside each other."""

from __future__ import annotations

from collections.abc import Collection, Mapping
from dataclasses import replace
from difflib import get_close_matches
from numbers import Integral, Real
from typing import Any, Literal, get_args

from tracecompile.errors import InvalidInput
from tracecompile.program import Settings
from tracecompile.rules import RULES

Rule = Literal["measured", "analytic", "exact", "bptt"]
Backend = Literal["auto", "eager", "inductor"]


class LeftOut(int):
    """The value of an option that was left out: the number that it says, and known from the same number given."""


BINS: int = LeftOut(4)
"""Time bins where nobody asks for a number of them."""
SNAPSHOTS: int = LeftOut(32)
"""Snapshots where nobody asks for a number of them."""


def settings_of(
    rule: Any = "measured",
    bins: Any = BINS,
    decay: Any = None,
    backend: Any = "auto",
    chunk: Any = None,
    snapshots: Any = SNAPSHOTS,
) -> Settings:
    """Returns what was asked of ``convert``; see there.

    Raises:
        InvalidInput: An option has no such value, or none beside another option; names it.
    """
    _require_known("rule", rule, RULES)
    _require_known("backend", backend, get_args(Backend))
    settings = Settings(
        rule=rule,
        bins=_whole_number("bins", bins),
        decay=_decay(decay),
        backend=backend,
        chunk=None if chunk is None else _whole_number("chunk", chunk),
        snapshots=None if snapshots is None else _whole_number("snapshots", snapshots),
    )
    _require_use(settings, not isinstance(bins, LeftOut), not isinstance(snapshots, LeftOut))
    return replace(settings, bins=RULES[rule].bins(settings))


def _require_known(option: str, value: Any, known: Collection[str]) -> None:
    if isinstance(value, str) and value in known:
        return
    near = get_close_matches(value, known, n=1) if isinstance(value, str) else []
    wanted = f"Write {option}={near[0]!r}; the" if near else "The"
    raise InvalidInput(f"There is no {option} {value!r}.", f"{wanted} {option}s are: {', '.join(known)}.")


def _whole_number(option: str, value: Any) -> int:
    number = int(value) if isinstance(value, Integral) and value is not True else 0
    if number < 1:
        raise InvalidInput(
            f"{option} is {value!r}, but must be a whole number of at least 1.", f"Leave {option} out for the default."
        )
    return number


def _decay(value: Any) -> float | dict[str, float] | None:
    if value is None:
        return None
    if not isinstance(value, Mapping):
        return _share("decay", value)
    if not value:
        raise InvalidInput("decay is an empty mapping, which names no layer.", "Leave it out, or name layers in it.")
    for name in value:
        if not isinstance(name, str):
            raise InvalidInput(f"decay names the layer {name!r}, but layers have names.", "net.report lists them.")
    return {name: _share(f"decay of {name}", share) for name, share in value.items()}


def _share(option: str, value: Any) -> float:
    # The bounds are no decays: nothing would be forgotten, or everything at once.
    share = float(value) if isinstance(value, Real) else 0.0
    if not 0 < share < 1:
        raise InvalidInput(
            f"{option} is {value!r}, but must lie between 0 and 1.", "Leave it out for the mean of the whole sequence."
        )
    return share


def _require_use(settings: Settings, bins_given: bool, snapshots_given: bool) -> None:
    """Refuses what would change nothing beside another option."""
    rule = RULES[settings.rule]
    if settings.decay is not None and not rule.records:
        raise InvalidInput(
            f"decay has no meaning beside rule={rule.name!r}, which keeps no traces.", "Leave one of the two out."
        )
    if bins_given and settings.decay is not None:
        raise InvalidInput(
            f"bins={settings.bins} has no meaning beside decay: a trace that decays has one bin.",
            "Leave one of the two out.",
        )
    if bins_given and not rule.resolves_steps(settings):
        raise InvalidInput(
            f"bins={settings.bins} has no meaning beside rule={rule.name!r}, which has no time bins.",
            "Leave one of the two out.",
        )
    if snapshots_given and not rule.recomputes:
        raise InvalidInput(
            f"snapshots={settings.snapshots} has no meaning beside rule={rule.name!r}, which takes none.",
            "Leave it out, or convert with rule='exact'.",
        )
