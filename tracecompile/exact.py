"""A value computed in one way with the gradient of another."""

from __future__ import annotations

from typing import TYPE_CHECKING

from torch import Tensor

from tracecompile.operations import Fact, described

if TYPE_CHECKING:
    from tracecompile.program import StepProgram


@described(Fact.ELEMENTWISE | Fact.LINEAR)
def exact_value(computed: Tensor, value: Tensor) -> Tensor:
    """Returns ``value``, bit for bit, with the gradient of ``computed``.

    A product over a whole sequence and the same product step by step may differ in the last bit: the first is the value
    that the model has, the second is what can be trained in memory that does not grow with time.

    Args:
        computed: The same up to rounding, of the same shape.
        value: What to return; no gradient flows into it.
    """
    if not computed.requires_grad:
        return value.detach()
    return value.detach() + (computed - computed.detach())


def only_exact_value(program: StepProgram, name: str) -> bool:
    """Tells whether an input of the step does nothing but give computed values their last bits."""
    node = next(node for node in program.step.graph.nodes if node.name == name)
    return bool(node.users) and all(user.target is exact_value and user.args[0] is not node for user in node.users)
