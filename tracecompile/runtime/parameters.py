"""The Parameters that a window was opened with: those whose gradients backward takes, whatever the model holds then."""

from __future__ import annotations

from collections.abc import Iterator
from contextlib import contextmanager

from torch import Tensor, nn

from tracecompile.program import StepProgram
from tracecompile.runtime.anew import read_by_steps
from tracecompile.runtime.rerun import Prepared


class HeldParameters:
    """What the tables of a model hold at one time.

    ``torch.func.functional_call`` puts other tensors into them while forward runs, and takes them out again before
    backward does.
    """

    def __init__(self, model: nn.Module) -> None:
        """Notes the Parameters of a model."""
        tables = [module._parameters for module in model.modules()]
        self._entries = [(table, name, value) for table in tables for name, value in table.items()]

    @contextmanager
    def put_back(self) -> Iterator[None]:
        """Lets the model hold them again while the context is open."""
        gone = [(table, name, value) for table, name, value in self._entries if table.get(name, value) is not value]
        now = [(table, name, table[name]) for table, name, _ in gone]
        try:
            for table, name, value in gone:
                table[name] = value
            yield
        finally:
            for table, name, value in now:
                table[name] = value


def learned_arguments(program: StepProgram, start: Prepared) -> list[Tensor]:
    """Returns the arguments that every step reads and that require a gradient.

    What the steps do not read is the epilogue's alone: it may be as long as the sequence, and has a graph of its own.
    """
    given = zip(program.invariants, start.invariants, strict=True)
    wanted = {name: value for name, value in given if isinstance(value, Tensor) and value.requires_grad}
    read = read_by_steps(program) if wanted else set()
    return [value for name, value in wanted.items() if name in read]
