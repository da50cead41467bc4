"""Compiled: everything that a converted module runs on, for calls of one mode and kind."""

from __future__ import annotations

from collections.abc import Collection
from dataclasses import dataclass
from typing import Any

from torch import nn

from tracecompile.arguments import Arguments
from tracecompile.capture.loops.resizing import first_tensor
from tracecompile.facts import Facts
from tracecompile.printing import Stages
from tracecompile.program import Settings, StepProgram
from tracecompile.report import ConversionReport
from tracecompile.segment import with_segments


@dataclass(frozen=True)
class Request:
    """A model that is to be compiled, and one call of it to do so from.

    Attributes:
        model: What the program will run on; capture itself runs copies of it.
        args, kwargs: Positional and keyword arguments of the call.
        settings: What the user asked for.
    """

    model: nn.Module
    args: tuple[Any, ...]
    kwargs: dict[str, Any]
    settings: Settings


@dataclass(frozen=True)
class Compiled:
    """A compiled model.

    Attributes:
        program: After all passes.
        stages: What it was after capture and after each, as text.
        report: What the user is told.
        arguments: How calls are laid over the captured one.
        modes: Training flag of every module, where the program depends on them.
        numbers: What the pinned numbers among the arguments were.
        steps: The number of time steps, where the program is that of one number.
        shape: Sizes of the first tensor argument that a call has to have, None for those that are free.
        facts: Of the model, as it was captured; None where nobody has looked.
    """

    program: StepProgram
    stages: Stages
    report: ConversionReport
    arguments: Arguments
    modes: tuple[bool, ...] | None
    numbers: tuple[Any, ...]
    steps: int | None = None
    shape: tuple[int | None, ...] = ()
    facts: Facts | None = None

    def changed(self, facts: Facts) -> list[str]:
        """Returns the names of what the model has become another thing in since it was captured."""
        return [] if self.facts is None else self.facts.differing(facts, moving(self.program))

    def fits(self, module: nn.Module, args: tuple[Any, ...], kwargs: dict[str, Any]) -> bool:
        """Tells whether a call of a module runs the captured program, or one that has to be captured anew."""
        if self.modes is not None and self.modes != training_flags(module):
            return False
        if self.steps != steps_of(self.program, args, kwargs):
            return False
        first = first_tensor(args, kwargs)
        sizes = zip(self.shape, () if first is None else first.shape, strict=False)
        if any(wanted not in (None, size) for wanted, size in sizes):
            return False
        return self.arguments.fits(args, kwargs) and self.numbers == self.arguments.numbers(
            self.program.pinned, args, kwargs
        )


def moving(program: StepProgram) -> frozenset[str]:
    """Returns the names of the attributes of a model that its program moves, or that its states are in."""
    programs = with_segments(program)
    names = {name for each in programs for name in (*each.written, *each.statistics)}
    names |= {name for each in programs for carry in each.carries for name in (carry.place, carry.statistic) if name}
    roots = {name.partition("[")[0] for name in names}
    # SpikingJelly's neurons keep theirs in a dictionary.
    within = {".".join((*root.split(".")[:-1], "_memories", root.rpartition(".")[2])) for root in roots}
    return frozenset(roots | within)


def steps_of(program: StepProgram, args: tuple[Any, ...], kwargs: dict[str, Any]) -> int | None:
    """Returns the number of time steps of a call, where a program is built for one number of them.

    Where a number among the arguments says it, that is pinned, like any other that the program has built in.
    """
    axis, number = program.time
    first = first_tensor(args, kwargs)
    if not program.length_bound or number is not None or axis is None or first is None or first.dim() <= axis:
        return None
    return int(first.shape[axis])


def shape_of(
    program: StepProgram, args: tuple[Any, ...], kwargs: dict[str, Any], free: Collection[int]
) -> tuple[int | None, ...]:
    """Returns the sizes that calls of a program must share with the one that it was captured from.

    A loop whose length no input says may have taken it from any size; those are free along which it was compared.
    """
    first = first_tensor(args, kwargs)
    if program.kind == "step" or program.length is None or program.length_bound or first is None:
        return ()
    return tuple(None if axis in free else size for axis, size in enumerate(first.shape))


def training_flags(module: nn.Module) -> tuple[bool, ...]:
    """Returns the training flag of a module and of all below it."""
    return tuple(each.training for each in module.modules())
