"""From a model and one call of it to everything that a converted module runs on."""

from __future__ import annotations

from collections.abc import Collection
from dataclasses import dataclass, replace
from typing import Any

import torch
from torch import Tensor, nn
from torch.utils import _pytree as pytree

from tracecompile.capture import capture_program
from tracecompile.capture.copying.copies import share_parameters
from tracecompile.capture.copying.owned import resolved_in
from tracecompile.capture.copying.registries import registries_redirected
from tracecompile.capture.loops.lengths import TimeSource
from tracecompile.capture.loops.resizing import first_tensor
from tracecompile.capture.tracing.source import line_of_failure
from tracecompile.diagnostics.describe import describe
from tracecompile.diagnostics.report import ConversionReport
from tracecompile.errors import ConversionError, InvalidInput, SourceLine, UnsupportedState
from tracecompile.passes.pipeline import run_pipeline
from tracecompile.printing import Stages
from tracecompile.program import Settings, StepProgram
from tracecompile.runtime.arguments import Arguments, check_tensor


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
    """

    program: StepProgram
    stages: Stages
    report: ConversionReport
    arguments: Arguments
    modes: tuple[bool, ...] | None
    numbers: tuple[Any, ...]
    steps: int | None = None
    shape: tuple[int | None, ...] = ()

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


def with_epilogue_again(compiled: Compiled, where: SourceLine | None) -> Compiled | None:
    """Returns a program whose epilogue keeps nothing for backward; None where the line that keeps is not there.

    Args:
        compiled: A program that keeps something for every time step.
        where: The line that does.
    """
    program = compiled.program
    lines = {node.meta.get("where") for node in program.epilogue.graph.nodes}
    if program.kind == "step" or program.epilogue_again or where is None or where not in lines:
        return None
    return going_again(compiled, where)


def going_again(compiled: Compiled, where: SourceLine | None) -> Compiled:
    """Returns a program whose epilogue backward runs again because of a line; the program itself for None."""
    program = compiled.program.evolve(epilogue_again=where)
    return replace(compiled, program=program, report=describe(program))


def training_flags(module: nn.Module) -> tuple[bool, ...]:
    """Returns the training flag of a module and of all below it."""
    return tuple(each.training for each in module.modules())


def compile_model(
    model: nn.Module,
    args: tuple[Any, ...],
    kwargs: dict[str, Any],
    settings: Settings,
    source: TimeSource | None = None,
) -> Compiled:
    """Captures a model and runs the passes.

    Args:
        model: What the program will run on; capture itself runs copies of it.
        args: Positional arguments of one example call.
        kwargs: Keyword arguments of it.
        settings: What the user asked for.
        source: What says how many steps there are, to build the program for this number of them alone.

    Raises:
        ConversionError: The model is refused.
    """
    for leaf in pytree.tree_leaves((args, kwargs)):
        if isinstance(leaf, Tensor):
            check_tensor("An example input", leaf)
    try:
        captured = capture_program(model, args, kwargs, source)
    except ConversionError:
        raise
    except (RuntimeError, TypeError, IndexError, ValueError) as fault:
        raise _does_not_run(model, args, kwargs, fault) from fault
    for name, where in captured.left_over:
        raise UnsupportedState(
            f"The state {name} is left over from an earlier call, with a row for each sample of that call.",
            "Clear it before the model is converted, or give the model a method reset() that does.",
            where,
        )
    program, stages = run_pipeline(resolved_in(model, captured).evolve(settings=settings))
    arguments = Arguments(model, program, args, kwargs)
    if program.length_bound:
        _forget_examples(program)
    return Compiled(
        program,
        stages,
        describe(program),
        arguments,
        modes=training_flags(model) if program.reads_mode else None,
        numbers=arguments.numbers(program.pinned, args, kwargs),
        steps=steps_of(program, args, kwargs),
    )


def _forget_examples(program: StepProgram) -> None:
    """Keeps one time step of the values that the program was captured with: they are as long as the sequence.

    Many programs of this kind may be kept. What is asked of these values from here on is their shape and type.
    """
    parts = [program.prologue, program.epilogue]
    if program.emitted is not None:
        parts += [program.emitted.prologue, program.emitted.arguments, program.emitted.epilogue]

    def shortened(value: Any) -> Any:
        if not isinstance(value, Tensor) or value.dim() == 0:
            return value
        axis = min(program.time[0] or 0, value.dim() - 1)
        return value.narrow(axis, 0, min(1, value.shape[axis])).clone().expand(value.shape)

    for node in (node for part in parts for node in part.graph.nodes):
        if "val" in node.meta:
            node.meta["val"] = pytree.tree_map(shortened, node.meta["val"])


def _does_not_run(model: nn.Module, args: tuple[Any, ...], kwargs: dict[str, Any], fault: Exception) -> Exception:
    """Tells an input that the model itself cannot take from a fault of the capture, which stays as it is."""
    try:
        copied = share_parameters(model)
        with torch.no_grad(), torch.random.fork_rng(), registries_redirected(copied):
            copied(*args, **kwargs)
    except (RuntimeError, TypeError, IndexError, ValueError) as own:
        return InvalidInput(
            f"The model itself cannot run on the example: {str(own).splitlines()[0]}.",
            "Pass an input that it can run on; clear states that it has kept from other inputs.",
            line_of_failure(own),
        )
    return fault
