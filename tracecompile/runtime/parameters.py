"""Arguments of a call that are trained like Parameters."""

from __future__ import annotations

from torch import Tensor

from tracecompile.program import StepProgram
from tracecompile.runtime.anew import read_by_steps
from tracecompile.runtime.rerun import Prepared


def learned_arguments(program: StepProgram, start: Prepared) -> list[Tensor]:
    """Returns the arguments that every step reads and that require a gradient.

    What the steps do not read is the epilogue's alone: it may be as long as the sequence, and has a graph of its own.
    """
    given = zip(program.invariants, start.invariants, strict=True)
    wanted = {name: value for name, value in given if isinstance(value, Tensor) and value.requires_grad}
    read = read_by_steps(program) if wanted else set()
    return [value for name, value in wanted.items() if name in read]
