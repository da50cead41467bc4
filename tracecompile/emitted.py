"""What the last pass makes: the code of one time step, and of what stands around it."""

from __future__ import annotations

from dataclasses import dataclass

from torch import fx

from tracecompile.layers import Accrual


@dataclass(frozen=True)
class Emitted:
    """The generated code of one time step.

    Attributes:
        plain: (*inputs, *invariants, *states, *statics) -> (outputs, next states, (), (), ()).
        traced: The same step in trace form, (*inputs, *invariants, *states, *statics, *accruals) -> (outputs, next
            states, next accruals, values of the traces, outputs, answers and derivatives of each layer).
        accruals: What it carries, traces first.
        prologue, epilogue: As in the program, with the model's parameters and buffers as first arguments.
        arguments: The prologue without the initial states.
        prologue_attributes, epilogue_attributes: Paths of those.
    """

    plain: fx.GraphModule
    traced: fx.GraphModule
    accruals: tuple[Accrual, ...]
    prologue: fx.GraphModule
    arguments: fx.GraphModule
    epilogue: fx.GraphModule
    prologue_attributes: tuple[str, ...]
    epilogue_attributes: tuple[str, ...]
