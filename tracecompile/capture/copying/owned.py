"""What of a captured program is the model's, and what is the program's own."""

from __future__ import annotations

from torch import nn

from tracecompile.capture.tracing.build import find
from tracecompile.capture.tracing.step_mode import single_steps_of
from tracecompile.program import StepProgram


def resolved_in(model: nn.Module, program: StepProgram) -> StepProgram:
    """Lets a program that was captured from copies of a model run on the model's own modules and tensors.

    Its own are the tensors that capture met outside the model, and the values that states start from: the model writes
    those places when it runs, the program never does.

    Args:
        model: What capture took its copies from.
        program: As captured.
    """
    attributes = {
        str(node.target)
        for part in (program.prologue, program.step, program.epilogue)
        for node in part.graph.nodes
        if node.op == "get_attr"
    }
    own = {name for name in attributes if name in program.written or not _has(model, name)}
    constants = {name: find(program.root, name) for name in sorted(own)}
    leaves = {**program.leaves, **single_steps_of(model)}
    return program.evolve(root=model, leaves=leaves, constants=constants)


def _has(model: nn.Module, target: str) -> bool:
    try:
        find(model, target)
    except AttributeError:
        return False
    return True
