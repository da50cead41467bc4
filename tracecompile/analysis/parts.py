"""The graphs that a captured program is made of."""

from __future__ import annotations

from torch import fx

from tracecompile.program import StepProgram


def parts_of(program: StepProgram) -> tuple[fx.GraphModule, ...]:
    """Returns all that a call of the program runs: prologue, draws, step, epilogue."""
    draws = () if program.draws.graph is None else (program.draws.graph,)
    return program.prologue, *draws, program.step, program.epilogue
