"""A scan as a function of a flat list of tensors, the form in which it is traced and compiled."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from dataclasses import dataclass
from itertools import islice
from typing import Any

import torch
from torch import Tensor, nn
from torch.func import functional_call

from tracecompile.layers import Unit
from tracecompile.runtime.chunked.core_scan import Carried, CoreResult, CoreScan, ScanResult
from tracecompile.runtime.chunked.scan import scan

Step = Callable[..., Any]


@dataclass(frozen=True)
class Layout:
    """What the flat arguments and results of the scans of one unit stand for.

    The arguments are (*values, *carries, *statics, *held, *carried of each core). Statics that are no tensors are
    ``constants``, by position, and no arguments.

    Attributes:
        unit: The unit.
        cores: What is carried along.
        places: Which of the layers of the unit each core belongs to.
        held: Names of the parameters and buffers of the modules in its step.
        constants: Statics that are no tensors.
    """

    unit: Unit
    cores: tuple[CoreScan, ...]
    places: tuple[int, ...]
    held: tuple[str, ...]
    constants: tuple[tuple[int, Any], ...]

    @property
    def step(self) -> nn.Module:
        """The step of the unit."""
        assert self.unit.step is not None
        return self.unit.step

    def arguments(
        self,
        values: Sequence[Tensor],
        carries: Sequence[Tensor],
        statics: Sequence[Any],
        held: Sequence[Tensor],
        carried: Sequence[Carried],
    ) -> list[Tensor]:
        """Lays out the arguments, every one of them dense, so that one compilation serves them all."""
        left_out = {position for position, _ in self.constants}
        found = [*values, *carries, *(value for place, value in enumerate(statics) if place not in left_out), *held]
        for core in carried:
            found += [*core.tangents, *core.sums]
        return [value if value.is_contiguous() else value.contiguous() for value in found]

    def first_step(self, arguments: Sequence[Tensor]) -> list[Tensor]:
        """Returns the arguments of the first step out of those of a scan."""
        first = len(self.unit.values)
        count = first + len(self.unit.carries) + len(self.unit.step_statics) - len(self.constants) + len(self.held)
        return [*(value[0] for value in arguments[:first]), *arguments[first:count]]

    def step_of(self, *flat: Tensor) -> Any:
        """One step of the unit: (*values, *carries, *statics, *held) to its results."""
        given = iter(flat)
        states = list(islice(given, len(self.unit.values) + len(self.unit.carries)))
        statics = self._statics(given)
        return functional_call(self.step, dict(zip(self.held, given, strict=True)), (*states, *statics))

    def _statics(self, given: Any) -> list[Any]:
        constants = dict(self.constants)
        places = range(len(self.unit.step_statics))
        return [constants[place] if place in constants else next(given) for place in places]

    def scan_of(self, step: Step, steps: int) -> Callable[..., list[Tensor]]:
        """Returns the scan of ``steps`` steps from flat arguments to flat results.

        Args:
            step: (*values, *carries, *statics, *held) -> results of one step.
            steps: How many.
        """

        def run(*flat: Tensor) -> list[Tensor]:
            given = iter(flat)
            values = list(islice(given, len(self.unit.values)))
            carries = list(islice(given, len(self.unit.carries)))
            statics = list(islice(given, len(self.unit.step_statics) - len(self.constants) + len(self.held)))
            carried = [
                Carried(list(islice(given, len(core.reached))), list(islice(given, len(core.answered))))
                for core in self.cores
            ]
            # A mean over all neurons does not fuse with what is computed for each of them: it is left for later.
            found = scan(step, self.cores, self.places, steps, values, carries, statics, carried, torch.clone)
            flat_results = [*found.outputs, *found.carries]
            for core in found.cores:
                parts = (core.carried.tangents, core.carried.sums, core.last, core.derivatives, core.profiles)
                flat_results += [value for part in parts for value in part]
            return flat_results

        return run

    def result(self, flat: Sequence[Tensor], derivatives: Sequence[int]) -> ScanResult:
        """Reads flat results; ``derivatives`` says how many the step returns of each layer."""
        given = iter(flat)
        outputs = list(islice(given, len(self.unit.outputs)))
        carries = list(islice(given, len(self.unit.carries)))
        cores = []
        for core, place in zip(self.cores, self.places, strict=True):
            answered = len(core.answered)
            carried = Carried(list(islice(given, len(core.reached))), list(islice(given, answered)))
            last, entries = list(islice(given, answered)), list(islice(given, derivatives[place]))
            cores.append(CoreResult(carried, last, entries, list(islice(given, len(core.profiled)))))
        return ScanResult(outputs, carries, [], cores)


def layout_of(unit: Unit, cores: Sequence[CoreScan], places: Sequence[int], statics: Sequence[Any]) -> Layout:
    """Returns the layout of a unit whose step holds what it holds now."""
    assert unit.step is not None
    held = [name for name, _ in (*unit.step.named_parameters(), *unit.step.named_buffers())]
    constants = [(place, value) for place, value in enumerate(statics) if not isinstance(value, Tensor)]
    return Layout(unit, tuple(cores), tuple(places), tuple(held), tuple(constants))


def held_tensors(module: nn.Module, names: Sequence[str]) -> list[Tensor]:
    """Returns the parameters and buffers of a module as they are now."""
    found = []
    for name in names:
        owner, _, attribute = name.rpartition(".")
        found.append(getattr(module.get_submodule(owner), attribute).detach())
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
