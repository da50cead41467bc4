"""What is said of work on whole sequences that no single step can do."""

from __future__ import annotations

from torch import fx, nn

from tracecompile.analysis.norms import NORMS
from tracecompile.errors import ConversionError, UnrollableLoop, UnsupportedOperation


def operation(node: fx.Node) -> str:
    """Returns the name of what a node computes."""
    return node.target if isinstance(node.target, str) else getattr(node.target, "__name__", str(node.target))


def mixes_steps(node: fx.Node, module: nn.Module | None) -> ConversionError:
    """Makes the refusal of an operation that makes something of several time steps together."""
    where = node.meta.get("where")
    if isinstance(module, NORMS) and module.training:
        return UnsupportedOperation(
            f"The normalisation {node.target} takes the statistics of all time steps at once.",
            "Call it in the loop over time, once a step.",
            where,
        )
    name = operation(node)
    return UnrollableLoop(
        f"The model computes {name} of several time steps together, from values that are not known before the loop; "
        "memory would grow with the sequence.",
        "Compute it of one time step at a time, or of the input alone.",
        where,
    )
