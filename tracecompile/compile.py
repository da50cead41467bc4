"""From a model and one call of it to everything that a converted module runs on."""

from __future__ import annotations

from dataclasses import dataclass
from typing import Any

from torch import nn

from tracecompile.capture import capture_program
from tracecompile.diagnostics.report import ConversionReport
from tracecompile.passes.pipeline import Stages, run_pipeline
from tracecompile.program import Settings, StepProgram
from tracecompile.reporting import describe
from tracecompile.runtime.arguments import Arguments


@dataclass(frozen=True)
class Compiled:
    """A compiled model.

    Attributes:
        program: After all passes.
        stages: Its text after each.
        report: What the user is told.
        arguments: How calls are laid over the captured one.
    """

    program: StepProgram
    stages: Stages
    report: ConversionReport
    arguments: Arguments


def compile_model(model: nn.Module, args: tuple[Any, ...], kwargs: dict[str, Any], settings: Settings) -> Compiled:
    """Captures a model and runs the passes.

    Args:
        model: Any module; it is not modified.
        args: Positional arguments of one example call.
        kwargs: Keyword arguments of it.
        settings: What the user asked for.

    Raises:
        ConversionError: The model is refused.
    """
    captured = capture_program(model, args, kwargs).evolve(settings=settings)
    program, stages = run_pipeline(captured)
    return Compiled(program, stages, describe(program), Arguments(model, program, args, kwargs))
