"""A program in trace form as one call runs it: with what the call asks for, and no more."""

from __future__ import annotations

import copy
from collections.abc import Collection, Sequence
from dataclasses import dataclass, field
from functools import cached_property
from typing import TYPE_CHECKING, Any

import torch
from torch import Tensor, fx

from tracecompile.graphs.pruning import pruned, unseen
from tracecompile.layers import Accrual, Pair
from tracecompile.program import StepProgram
from tracecompile.rules.measured.lines import FROM
from tracecompile.rules.measured.profiles import GAIN
from tracecompile.runtime.draws import Drawer
from tracecompile.units import Unit

if TYPE_CHECKING:
    from tracecompile.runtime.record import Record


@dataclass(frozen=True)
class CoreForm:
    """What one core answers in a step.

    Attributes:
        index: Of its layer in the program; ``place`` in the unit.
        layer: Name of it.
        responses: What its answers are to.
        rows: Of its derivatives.
        outputs: Of the layer.
    """

    index: int
    place: int
    layer: str
    responses: tuple[Accrual, ...]
    rows: dict[Pair, int | float]
    outputs: tuple[str, ...]

    @cached_property
    def gains(self) -> dict[Pair, int | float]:
        """The derivatives within a step, by the key of their profile."""
        variables = {accrual.pair[1] for accrual in self.responses if not accrual.pair[1].startswith(FROM)}
        return {
            (f"{GAIN}{result}", variable): row
            for (result, variable), row in self.rows.items()
            if result in self.outputs and variable in variables
        }

    def answers(self, of_layer: Any) -> dict[Pair, Any]:
        """Returns the answers of a step by (output, variable)."""
        return {accrual.pair: answer for accrual, answer in zip(self.responses, of_layer[1], strict=True)}

    def derivatives(self, of_layer: Any) -> dict[Pair, Any]:
        """Returns the derivatives of a step by (result, variable)."""
        entries = of_layer[2]
        return {key: entries[row] if isinstance(row, int) else row for key, row in self.rows.items()}

    def profiled(self, of_layer: Any) -> dict[Pair, Tensor]:
        """Returns the answers of a step by (output, variable), and the gains by (``gain of <output>``, variable)."""
        found: dict[Pair, Tensor] = self.answers(of_layer)
        like = next(iter(found.values()), None)
        for key, row in self.gains.items():
            slope = of_layer[2][row] if isinstance(row, int) else row
            if isinstance(slope, Tensor):
                found[key] = slope
            elif like is not None:
                found[key] = torch.full((), slope, dtype=like.dtype, device=like.device)
        return found


@dataclass(frozen=True, eq=False)
class UnitForm:
    """A unit with the step that is run."""

    unit: Unit
    step: fx.GraphModule | None
    accruals: tuple[Accrual, ...]
    cores: tuple[CoreForm, ...]


class Form:
    """What one call runs.

    Attributes:
        step: The step of the program; ``accruals`` what it carries, traces first.
        cores: By layer.
        drawer: Draws what the step takes.
    """

    def __init__(self, program: StepProgram, step: fx.GraphModule, accruals: Sequence[Accrual], drawer: Drawer) -> None:
        """Takes a step that carries less than that of the program, and what it carries."""
        self.program, self.step, self.accruals, self.drawer = program, step, tuple(accruals), drawer
        self.kept = {accrual.name for accrual in accruals}
        self.cores = self._cores(range(len(program.layers)))

    @cached_property
    def unseen(self) -> fx.GraphModule:
        """The step without answers and derivatives, which the last step leaves behind, and no other that is folded."""
        return unseen(self.step)

    @cached_property
    def units(self) -> tuple[UnitForm, ...]:
        """The same step, block by block, for many steps at once."""
        return tuple(self._unit(unit) for unit in self.program.units)

    def _unit(self, unit: Unit) -> UnitForm:
        if unit.step is None:
            return UnitForm(unit, None, (), ())
        dropped = {accrual.name for accrual in unit.accruals} - self.kept
        step, accruals = pruned(unit.step, unit.accruals, dropped)
        return UnitForm(unit, step, accruals, self._cores(unit.layers))

    def _cores(self, layers: Collection[int]) -> tuple[CoreForm, ...]:
        found = []
        for place, index in enumerate(layers):
            layer = self.program.layers[index]
            rule = layer.response
            if rule is not None and rule.graph is not None:
                kept = (accrual for accrual in rule.accruals if accrual.name in self.kept)
                responses = tuple(accrual for accrual in kept if accrual.role == "response")
                found.append(CoreForm(index, place, layer.name, responses, rule.rows, layer.outputs))
        return tuple(found)


@dataclass
class Forms:
    """The forms of one program, each made when it is first asked for."""

    program: StepProgram
    made: dict[frozenset[str], Form] = field(default_factory=dict)

    @cached_property
    def drawer(self) -> Drawer:
        """Draws the random numbers of its steps."""
        return Drawer(self.program)

    @cached_property
    def plain(self) -> Form:
        """The step as the model has it, under which autograd may follow it."""
        assert self.program.emitted is not None
        return Form(self.program, self.program.emitted.plain, (), self.drawer)

    def __deepcopy__(self, memo: dict[int, Any]) -> Forms:
        """Returns that of the copied program, with nothing made yet."""
        return Forms(copy.deepcopy(self.program, memo))

    def asked(self, record: Record | None) -> Form:
        """Returns the form that carries what a record asks for; without one, derivatives alone."""
        return self.without(_dropped(self.program, record))

    def without(self, dropped: Collection[str]) -> Form:
        """Returns the form that leaves some accruals out, by name."""
        key = frozenset(dropped)
        if key not in self.made:
            emitted = self.program.emitted
            assert emitted is not None
            self.made[key] = Form(self.program, *pruned(emitted.traced, emitted.accruals, key), self.drawer)
        return self.made[key]


def _dropped(program: StepProgram, record: Record | None) -> set[str]:
    """Returns the names of the accruals that nobody asks for."""
    emitted = program.emitted
    assert emitted is not None
    if record is None:
        return {accrual.name for accrual in emitted.accruals}
    # What acts through the states of the last fold counts only if there is one before the end, or a start that learns.
    whole = record.clock.capacity == 1 and not program.first_apart and not record.learns_starts
    found = set()
    for accrual in emitted.accruals:
        if accrual.role == "trace":
            continue
        variable = accrual.pair[1] if accrual.role == "response" else accrual.pair[0]
        wanted = record.responses[accrual.layer].tangents.slots
        if whole if variable.startswith(FROM) else variable not in wanted:
            found.add(accrual.name)
    return found
