"""Initial states whose gradient no rule would find."""

from __future__ import annotations

from collections.abc import Sequence

from torch import Tensor

from tracecompile.errors import UnsupportedState
from tracecompile.program import StepProgram


def refuse_unreachable(program: StepProgram, initial: Sequence[Tensor]) -> None:
    """Refuses initial states that want a gradient, and that no neuron keeps.

    Args:
        program: After all passes.
        initial: In the order of the carries.

    Raises:
        UnsupportedState: There is one.
    """
    held = {state for layer in program.layers for state in layer.states}
    output = next(node for node in reversed(program.prologue.graph.nodes) if node.op == "output")
    for carry, state, node in zip(program.carries, initial, output.args[0][2], strict=True):
        if state.requires_grad and carry.placeholder not in held:
            raise UnsupportedState(
                f"The initial value of {carry.name} requires a gradient, but no neuron keeps it: the step before "
                "reaches this one through a synapse only.",
                "Detach the initial value, or let the neuron add up its state by elementwise operations.",
                node.meta.get("where"),
            )
