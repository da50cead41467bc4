"""Blocks as they are computed for a piece of time steps."""

from __future__ import annotations

from collections.abc import Iterable
from dataclasses import dataclass

from torch import fx

from tracecompile.layers import Accrual, Fold


@dataclass(frozen=True)
class Moves:
    """What a step does to statistics of the model that no layer needs.

    Attributes:
        graph: (*reads, *statistics, *statics) -> next values of the statistics, those of one step.
        reads: Values of the step that it takes.
        statistics: Placeholders of the statistics that it moves.
        statics: Names of the static values that it takes.
    """

    graph: fx.GraphModule
    reads: tuple[str, ...]
    statistics: tuple[str, ...]
    statics: tuple[str, ...]


@dataclass(frozen=True)
class Unit:
    """A block as it is computed for a piece of time steps: what only reads other blocks at once, the rest as a scan.

    Attributes:
        layers: Indices into the program's layers, in the order of the step.
        sources: Values that its synapses read from outside the block.
        below: (*sources, *below_statics) -> (values, inputs of batch normalisations): what depends on nothing else.
        below_statics: Names of the static values that it takes.
        values: Names of the nodes that it makes, then of the random numbers that the cores take.
        drawn: How many of these there are.
        below_norms: Names of the normalisations whose inputs it returns.
        fold: How ``below`` is computed for all steps of a piece at once; None where its steps are taken one at a time.
        alone: Why they are; empty where there is a fold.
        in_turn: Whether the whole unit takes one step at a time, each before the next one of the units beside it that
            do so as well.
        step: (*values, *carries, *step_statics, *accruals) -> (outputs, next carries, next accruals, batch
            statistics of ``step_norms``, outputs, answers and derivatives of each layer): one step of everything else;
            None for a junction outside a recurrent block, which has nothing else.
        carries: Placeholders of the states and delays within the block.
        step_statics: Names of the static values that ``step`` takes.
        step_norms: Names of the normalisations in it.
        accruals: What its layers carry, but for traces.
        outputs: Nodes whose values ``step`` returns.
        recurrent: Whether the block feeds itself.
        moves: What is done to statistics once the unit has taken its step, and those before it; None for all but one
            unit of a program.
    """

    layers: tuple[int, ...]
    sources: tuple[str, ...]
    below: fx.GraphModule
    below_statics: tuple[str, ...]
    values: tuple[str, ...]
    below_norms: tuple[str, ...]
    fold: Fold | None
    alone: str
    in_turn: bool
    step: fx.GraphModule | None
    carries: tuple[str, ...]
    step_statics: tuple[str, ...]
    step_norms: tuple[str, ...]
    accruals: tuple[Accrual, ...]
    outputs: tuple[str, ...]
    recurrent: bool
    moves: Moves | None = None
    drawn: int = 0

    @property
    def made(self) -> tuple[str, ...]:
        """Names of the nodes that ``below`` makes."""
        return self.values[: len(self.values) - self.drawn]


def one_by_one(units: Iterable[Unit]) -> bool:
    """Tells whether all units of a program take turns: a piece of its time is then a single step."""
    return all(unit.in_turn for unit in units)
