"""A scan as a function of a flat list of tensors, the form in which it is traced and compiled."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from dataclasses import dataclass
from itertools import islice
from typing import Any

import torch
from torch import Tensor, nn

from tracecompile.layers import Pair
from tracecompile.runtime.engine.scan import ScanResult, Stretch, scan
from tracecompile.runtime.forms import UnitForm
from tracecompile.runtime.twins import Twins

Step = Callable[..., Any]


@dataclass(frozen=True)
class Layout:
    """What the flat arguments and results of the scans of one unit stand for.

    The arguments are (*values, *carries, *statics, *held, *accrued). Statics that are no tensors are ``constants``, by
    position, and no arguments.

    Attributes:
        form: The unit.
        held: Names of the parameters and buffers of the modules in its step.
        constants: Statics that are no tensors.
        each: Whether the answers of every step are wanted.
    """

    form: UnitForm
    held: tuple[str, ...]
    constants: tuple[tuple[int, Any], ...]
    each: bool

    @property
    def step(self) -> nn.Module:
        """The step of the unit."""
        assert self.form.step is not None
        return self.form.step

    def structure(self) -> tuple[Any, ...]:
        """Returns what the code of a scan depends on beside that of its step."""
        unit = self.form.unit
        gains = tuple(tuple(core.gains.values()) for core in self.form.cores) if self.each else ()
        return self.each, gains, len(unit.values), len(unit.carries), len(self.form.accruals)

    def arguments(self, given: Stretch) -> list[Tensor]:
        """Lays out the arguments, every one of them dense, so that one compilation serves them all."""
        left_out = {position for position, _ in self.constants}
        kept = (value for place, value in enumerate(given.statics) if place not in left_out)
        held = held_tensors(given.twins.of(self.step), self.held)
        found = [*given.values, *given.carries, *kept, *held, *given.accrued]
        return [value if value.is_contiguous() else value.contiguous() for value in found]

    def standing(self, arguments: Sequence[Tensor]) -> Sequence[Tensor]:
        """Returns those of the arguments that no step changes: statics, and what modules hold."""
        first = len(self.form.unit.values) + len(self.form.unit.carries)
        return arguments[first : len(arguments) - len(self.form.accruals)]

    def first_step(self, arguments: Sequence[Tensor]) -> list[Tensor]:
        """Returns the arguments of the first step out of those of a scan."""
        first = len(self.form.unit.values)
        return [*(value[0] for value in arguments[:first]), *arguments[first:]]

    def step_of(self, *flat: Tensor) -> Any:
        """One step of the unit: (*values, *carries, *statics, *held, *accrued) to its results."""
        given = iter(flat)
        unit = self.form.unit
        states = list(islice(given, len(unit.values) + len(unit.carries)))
        statics = self._statics(given)
        own = [value for _, value in (*self.step.named_parameters(), *self.step.named_buffers())]
        twins = Twins(dict(zip(own, islice(given, len(self.held)), strict=True)))
        return twins.called(self.step)(*states, *statics, *given)

    def _statics(self, given: Any) -> list[Any]:
        constants = dict(self.constants)
        places = range(len(self.form.unit.step_statics))
        return [constants[place] if place in constants else next(given) for place in places]

    def scan_of(self, step: Step, steps: int) -> Callable[..., list[Tensor]]:
        """Returns the scan of ``steps`` steps from flat arguments to flat results.

        Args:
            step: (*values, *carries, *statics, *held, *accrued) -> results of one step.
            steps: How many.
        """
        unit = self.form.unit
        between = len(unit.step_statics) - len(self.constants) + len(self.held)

        def run(*flat: Tensor) -> list[Tensor]:
            given = iter(flat)
            values, carries = list(islice(given, len(unit.values))), list(islice(given, len(unit.carries)))
            statics = list(islice(given, between))
            # A mean over all neurons does not fuse with what is computed for each of them: it is left for later.
            kept = torch.clone if self.each else None
            found = scan(step, Stretch(self.form, steps, values, carries, statics, list(given)), kept)
            flat_results = [*found.outputs, *found.carries, *found.accrued]
            for _, answers, derivatives in found.of_layers:
                flat_results += [*answers, *derivatives]
            for core in found.answers:
                flat_results += core.values()
            return flat_results

        return run

    def result(self, flat: Sequence[Tensor], counts: Sequence[tuple[int, int]]) -> ScanResult:
        """Reads flat results.

        Args:
            flat: As the scan has returned them.
            counts: How many answers and derivatives the step returns of each layer.
        """
        given, form = iter(flat), self.form
        outputs = list(islice(given, len(form.unit.outputs)))
        carries = list(islice(given, len(form.unit.carries)))
        accrued = list(islice(given, len(form.accruals)))
        of_layers = [((), tuple(islice(given, answers)), tuple(islice(given, rows))) for answers, rows in counts]
        answers: list[dict[Pair, Tensor]] = [{} for _ in form.cores]
        if self.each:
            answers = [dict(zip(core.profiled(of_layers[core.place]), given, strict=False)) for core in form.cores]
        return ScanResult(outputs, carries, accrued, [], of_layers, answers)


def layout_of(form: UnitForm, statics: Sequence[Any], each: bool) -> Layout:
    """Returns the layout of a unit whose step holds what it holds now."""
    assert form.step is not None
    held = [name for name, _ in (*form.step.named_parameters(), *form.step.named_buffers())]
    constants = [(place, value) for place, value in enumerate(statics) if not isinstance(value, Tensor)]
    return Layout(form, tuple(held), tuple(constants), each)


def held_tensors(module: nn.Module, names: Sequence[str]) -> list[Tensor]:
    """Returns the parameters and buffers of a module as they are now."""
    found = []
    for name in names:
        owner, _, attribute = name.rpartition(".")
        value: Tensor = getattr(module.get_submodule(owner), attribute)
        found.append(value if torch.is_grad_enabled() else value.detach())
    return found


def shape_pattern(values: Sequence[Tensor]) -> tuple[tuple[int, ...], ...]:
    """Returns which sizes are the same: a trace is one of sizes that are the same only because they were.

    Sizes of 0 and 1 stay what they are, since they broadcast; every other is its place among the distinct ones, behind.
    """
    known: dict[int, int] = {}
    return tuple(
        tuple(size if size < 2 else known.setdefault(size, len(known) + 2) for size in value.shape) for value in values
    )


def precision(device: torch.device) -> tuple[bool, torch.dtype]:
    """Returns the state of autocast, which is part of what is traced."""
    return torch.is_autocast_enabled(device.type), torch.get_autocast_dtype(device.type)
