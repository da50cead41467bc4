"""What runs the code of one program, as those see it that run a whole sequence or a step with it."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from typing import Any, Protocol

from torch import Tensor

from tracecompile.analysis.differentiable import GradientFlow
from tracecompile.rules import Rule
from tracecompile.runtime.bins import Clock
from tracecompile.runtime.ends import Ends
from tracecompile.runtime.engine.choice import Choice
from tracecompile.runtime.engine.scan import Engine
from tracecompile.runtime.engine.work import Work
from tracecompile.runtime.forms import Forms
from tracecompile.runtime.loop import Loop
from tracecompile.runtime.rerun import Prepared, Runs
from tracecompile.runtime.window import Window

Observer = Callable[[Sequence[Any]], None]  # of the (*inputs, *invariants, *states) that a step begins with


class Executes(Runs, Protocol):
    """See ``Executor``.

    Attributes:
        flow: Says which values require a gradient.
        rule: Of the program.
        forms: Of its step.
        observer: Looks at what every recorded step begins with.
        stepped: Whether sequences are run one step after the other, whatever the settings say.
        as_they_are: Runs scans that are not compiled.
        choice: What ran the last sequence that was trained.
        work: What was asked for so far, by which "auto" chooses.
    """

    flow: GradientFlow
    rule: Rule
    forms: Forms
    observer: Observer | None
    stepped: bool
    as_they_are: Engine
    choice: Choice | None
    work: Work

    @property
    def looked_at(self) -> bool:
        """Whether every step is to be run by itself."""

    @property
    def ends(self) -> Ends:
        """What runs before the steps and after them."""

    def engine(self, choice: Choice, *, begins: bool = True) -> Engine:
        """Returns what runs the scans of a sequence that begins, or that goes on."""

    def sequence(
        self,
        leaves: Sequence[Any],
        bins: int,
        left: Sequence[Tensor] | None = None,
        kept: Sequence[Any] | None = None,
    ) -> tuple[list[Any], Window | None, list[Tensor]]:
        """Runs a whole sequence; returns the leaves of its result, its window and the last states."""

    def plain_loop(self, prepared: Prepared) -> Loop:
        """Returns a loop over the step as the model has it, through which autograd may find its way."""

    def open_window(self, clock: Clock, prepared: Prepared) -> Window:
        """Opens a window that begins with the prepared states."""
