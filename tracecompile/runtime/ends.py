"""What runs before the loop over time and after it: prologue, static values and epilogue."""

from __future__ import annotations

from collections.abc import Callable, Iterable, Mapping, Sequence
from typing import Any

import torch
from torch import Tensor, nn

from tracecompile.analysis.in_rows import in_rows
from tracecompile.analysis.linearity import draws_random
from tracecompile.analysis.norms import values_normalised
from tracecompile.errors import InvalidInput
from tracecompile.program import StepProgram
from tracecompile.runtime.anew import made_anew
from tracecompile.runtime.backward.gradients import StandIns
from tracecompile.runtime.before import Before
from tracecompile.runtime.epilogue import Again
from tracecompile.runtime.in_rows.before import BeforeInRows
from tracecompile.runtime.in_rows.plan import Plan
from tracecompile.runtime.opened import Opened
from tracecompile.runtime.packed import unpacked
from tracecompile.runtime.rerun import Prepared, Rerun

LARGE = 0.1
"""From which share of all values of a model on those of one layer are computed a few rows at a time for backward: this
takes two more runs of what is before its normalisation, and several smaller layers fit beside a large one."""

AT_ONCE = 4
"""Steps whose rows are computed together there."""

Slot = tuple[Mapping[str, Any], str]
"""A table, and a key in it."""


class Ends:
    """The code of one program around its steps, on tensors of any batch size, length, dtype and device."""

    def __init__(self, program: StepProgram, opened: Callable[[], Opened], values: int) -> None:
        """Takes a program that has gone through all passes.

        Args:
            program: The program.
            opened: Returns the model as it is at this call.
            values: How many the whole model normalises over time and batch, of the example.
        """
        assert program.emitted is not None
        assert program.statics is not None
        self.opened = opened
        self.draws = any(draws_random(program, node) for node in program.prologue.graph.nodes)
        self.program, self.emitted, self.static_code = program, program.emitted, program.statics
        self._slots: dict[str, Slot] = {}
        self.anew = made_anew(program) if program.epilogue_again else frozenset[int]()
        is_large = values_normalised(program) >= LARGE * values
        self.plan = self._plan() if program.prologue_again and is_large else None

    def _plan(self) -> Plan | None:
        """Returns how the rows of the prologue are computed a few at a time, None where they cannot be."""
        prologue = self.emitted.prologue
        rows = in_rows(self.program, prologue, len(self.emitted.prologue_attributes))
        return None if rows is None else Plan(prologue, rows, AT_ONCE)

    def attributes(self, paths: Sequence[str], device: torch.device | None) -> list[Any]:
        """Returns the model's parameters and buffers as they are now."""
        slots = [self._slots.get(path) or self._slot(path) for path in paths]
        return [_on_device(table[key], device) for table, key in slots]

    def _slot(self, path: str) -> Slot:
        """Returns where a parameter or buffer is held, which is found once; what is none is looked up every time."""
        owner, _, key = path.rpartition(".")
        if path in self.program.leaves or path in self.program.constants:
            return {key: self.program.resolve(path)}, key
        module: Any = self.program.resolve(owner) if owner else self.program.root
        tables: list[Mapping[str, Any]] = [module._parameters, module._buffers] if isinstance(module, nn.Module) else []
        table = next((each for each in tables if key in each), None)
        if table is None:
            return {key: self.program.resolve(path)}, key
        self._slots[path] = table, key
        return table, key

    def prepare(
        self, leaves: Sequence[Any], given: Sequence[Tensor] | None = None, kept: Sequence[Any] | None = None
    ) -> Prepared:
        """Runs the prologue.

        Args:
            leaves: The call's leaves; packed ones are unpacked.
            given: States that the caller handed in instead of the initial ones.
            kept: The leaves as a prologue keeps them that runs again for backward; None for as they are.
        """
        device = _device_of(leaves)
        code = self.emitted.prologue if given is None else self.emitted.arguments
        attributes = self.attributes(self.emitted.prologue_attributes, device)
        before: Before | None = None
        if self.program.prologue_again and torch.is_grad_enabled():
            # The model may move its buffers before backward: statistics move with this very call.
            own = [value.clone() if _is_buffer(value) else value for value in attributes]
            operands = [*own, *(leaves if kept is None else kept)]
            if self.plan is not None and given is None:
                before = BeforeInRows(self.plan, code, self.opened, operands, self.draws)
            else:
                before = Before(code, self.opened, operands, self.draws)
            found = before.run([*attributes, *map(unpacked, leaves)])
        else:
            found = code(*attributes, *map(unpacked, leaves))
        inputs, invariants = found[:2]
        initial = self.with_statistics(given if given is not None else found[2])
        missing = [c.name for c, value in zip(self.program.carries, initial, strict=True) if value is None]
        if missing:
            raise InvalidInput(
                f"The model needs a state for {', '.join(missing)}.", "Hand it in, as the model itself requires it."
            )
        return Prepared(tuple(inputs), tuple(invariants), tuple(initial), device, before)

    def with_statistics(self, states: Sequence[Any]) -> tuple[Any, ...]:
        """Returns states with the statistics as the model holds them now: copies, since these will move."""
        found = dict(zip((carry.name for carry in self.program.carries), states, strict=False))
        for carry in self.program.carries:
            if carry.statistic:
                found[carry.name] = self.program.resolve(carry.statistic).detach().clone()
        return tuple(found.values())

    def move_statistics(self, names: Sequence[str], values: Sequence[Tensor]) -> None:
        """Leaves in the model what statistics have come to; in place, since others hold these tensors."""
        if not any(names):
            return
        with torch.no_grad():
            for name, value in zip(names, values, strict=True):
                if name:
                    self.program.resolve(name).copy_(value)

    def read_by_statics(self, leaves: Sequence[Any]) -> list[Any]:
        """Returns what static values are computed of, as it is now, for a call with these leaves."""
        return self.attributes(self.static_code.attributes, _device_of(leaves))

    def statics(self, prepared: Prepared, stand_ins: StandIns | None = None) -> dict[str, Any]:
        """Returns what does not change over time, with its graph if grad is enabled.

        Args:
            prepared: Start of the sequence.
            stand_ins: Filled with a leaf for each Parameter, to which the graph then leads instead.
        """
        attributes = self.attributes(self.static_code.attributes, prepared.device)
        if stand_ins is not None:
            attributes = [_stand_in(value, stand_ins) for value in attributes]
        values = self.static_code.graph(*attributes, *prepared.invariants)
        return dict(zip(self.static_code.names, values, strict=True))

    def finish(
        self,
        collected: Sequence[Any],
        states: Sequence[Tensor],
        invariants: Sequence[Any],
        rerun: Rerun | None = None,
        steps: int = 0,
    ) -> list[Any]:
        """Runs the epilogue; where a rerun is given so that it keeps nothing of all steps for backward."""
        device = _device_of((*collected, *states))
        attributes = self.attributes(self.emitted.epilogue_attributes, device)
        given = [*attributes, *collected, *states, *invariants]
        if rerun is None:
            leaves = list(self.emitted.epilogue(*given))
        else:
            again = Again(self.emitted.epilogue, self.program, rerun, steps, len(attributes), self.anew)
            leaves = again.run(given)
        count = len(leaves) - len(self.program.statistics)
        self.move_statistics(self.program.statistics, leaves[count:])
        if self.program.kind == "sequence":
            self.move_statistics([carry.statistic for carry in self.program.carries], states)
        return leaves[:count]


def _stand_in(value: Any, stand_ins: StandIns) -> Any:
    """Returns a leaf for a Parameter: its hooks must see its whole gradient once, and not a part of it.

    Under ``torch.func.functional_call`` a tensor of another kind stands in its place.
    """
    learned = isinstance(value, nn.Parameter) or (isinstance(value, Tensor) and value.requires_grad)
    if not learned:
        return value
    return stand_ins.setdefault(value, value.detach().requires_grad_(value.requires_grad))


def _device_of(values: Iterable[Any]) -> torch.device | None:
    return next((value.device for value in values if isinstance(value, Tensor)), None)


def _is_buffer(value: Any) -> bool:
    return isinstance(value, Tensor) and not isinstance(value, nn.Parameter) and not value.requires_grad


def _on_device(value: Any, device: torch.device | None) -> Any:
    """Moves a constant of the capture to where the input is; parameters and buffers are where the user put them."""
    if device is None or not isinstance(value, Tensor) or value.device == device or isinstance(value, nn.Parameter):
        return value
    return value if value.ndim == 0 else value.to(device)


def apart(value: Any) -> Any:
    """Returns a tensor in memory of its own, where it is a part of a larger one."""
    is_part = isinstance(value, Tensor) and value.untyped_storage().nbytes() > value.numel() * value.element_size()
    return value.clone() if is_part else value
