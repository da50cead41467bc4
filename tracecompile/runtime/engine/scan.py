"""Runs the steps of one unit over a piece of time: as they are; see ``compiled`` for inductor."""

from __future__ import annotations

import itertools
from collections.abc import Callable, Iterable, Sequence
from contextlib import AbstractContextManager, nullcontext
from dataclasses import dataclass, field
from typing import Any, Literal

import torch
from torch import Tensor, nn

from tracecompile.layers import Pair
from tracecompile.runtime.forms import UnitForm
from tracecompile.runtime.twins import Twins

Answers = Literal["last", "means", "each"]
"""Which answers of the cores are wanted: those of the last step alone, the means of every step, or those themselves."""


@dataclass
class ScanResult:
    """What a scan leaves behind.

    Attributes:
        outputs: Of the unit, (steps, *shape) each.
        carries: Next carries of the unit.
        accrued: What has accrued at the end.
        norms: (means, variances) of its normalisations, (steps, channels) each.
        of_layers: (outputs, answers, derivatives) of each layer in the last step.
        answers: By core, as ``CoreForm.profiled`` names them: (steps,) means, or (steps, *shape).
    """

    outputs: list[Tensor]
    carries: list[Tensor]
    accrued: list[Tensor]
    norms: list[tuple[Tensor, Tensor]]
    of_layers: Sequence[Any]
    answers: list[dict[Pair, Tensor]]


@dataclass
class Stretch:
    """The steps of one unit that a scan takes, and what it starts from.

    Attributes:
        form: The unit.
        steps: How many.
        values: (steps, *shape) each.
        carries, accrued: At the beginning.
        statics: What does not change.
        twins: Of the modules in its step, which are called in their place.
    """

    form: UnitForm
    steps: int
    values: Sequence[Tensor]
    carries: Sequence[Tensor]
    statics: Sequence[Any]
    accrued: Sequence[Tensor]
    twins: Twins = field(default_factory=lambda: Twins({}))


def scan(step: Callable[..., Any], given: Stretch, kept: Callable[[Tensor], Tensor] | None) -> ScanResult:
    """Runs a unit over a stretch of time.

    Args:
        step: (*values, *carries, *statics, *accruals) -> as a unit's step returns.
        given: Where it starts from.
        kept: What is kept of an answer of every step; None where only the last step's are wanted.
    """
    form, carries, accrued = given.form, given.carries, given.accrued
    made: list[list[Tensor]] = []
    statistics: list[list[tuple[Tensor, Tensor]]] = []
    answers: list[dict[Pair, list[Tensor]]] = [{} for _ in form.cores]
    of_layers: Any = ()
    values = (value.unbind() for value in given.values)
    for current in zip(*values, strict=True) if given.values else itertools.repeat((), given.steps):
        outputs, carries, accrued, norms, of_layers = step(*current, *carries, *given.statics, *accrued)
        made.append(outputs)
        statistics.append(norms)
        for core, rows in zip(form.cores if kept is not None else (), answers, strict=False):
            assert kept is not None
            for pair, value in core.profiled(of_layers[core.place]).items():
                rows.setdefault(pair, []).append(kept(value))
    return ScanResult(
        [torch.stack(rows) for rows in zip(*made, strict=True)],
        list(carries),
        list(accrued),
        [
            (torch.stack([mean for mean, _ in pairs]), torch.stack([variance for _, variance in pairs]))
            for pairs in zip(*statistics, strict=True)
        ],
        of_layers,
        [{pair: torch.stack(rows) for pair, rows in each.items()} for each in answers],
    )


class Engine:
    """Runs the scans of units as they are."""

    def begin(self) -> None:
        """Says that a sequence begins."""

    def foresee(self, scans: Callable[[], Iterable[tuple[Stretch, Answers]]]) -> None:
        """Takes notice of scans of a sequence that has begun, with which it may be asked to run them.

        Args:
            scans: Returns them, as ``run`` is given them, on values of the same shapes.
        """

    def products(self, graph: nn.Module, statics: Iterable[Any]) -> AbstractContextManager[None]:
        """Returns a context in which what synapses compute may be computed otherwise, bit by bit the same.

        Args:
            graph: Of the synapses; its parameters stay as they are until ``forget``.
            statics: Values that they read, likewise.
        """
        return nullcontext()

    def forget(self) -> None:
        """Says that parameters may be others from now on."""

    def pieces(self, form: UnitForm, steps: int) -> list[int]:
        """Returns the lengths of the scans that a piece of a unit is made of."""
        return [steps]

    def run(self, given: Stretch, answers: Answers) -> ScanResult:
        """Runs one scan; see ``scan``."""
        assert given.form.step is not None
        kept = {"last": None, "means": torch.mean, "each": torch.clone}[answers]
        return scan(given.twins.called(given.form.step), given, kept)
