"""The graphs that a captured program is made of."""

from __future__ import annotations

from torch import fx

from tracecompile.program import StepProgram
from tracecompile.segment import segments_of


def parts_of(program: StepProgram) -> tuple[fx.GraphModule, ...]:
    """Returns all that a call of the program runs: segments, prologue, draws, step, epilogue."""
    segments = [part for _, segment in segments_of(program.leaves) for part in parts_of(segment.program)]
    draws = () if program.draws.graph is None else (program.draws.graph,)
    return *segments, program.prologue, *draws, program.step, program.epilogue
