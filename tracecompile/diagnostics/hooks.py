"""What is said of hooks of the user's: which of them a net calls, and on what."""

from __future__ import annotations

from collections.abc import Sequence

from tracecompile.analysis.parts import parts_of
from tracecompile.program import StepProgram
from tracecompile.rules import rule_of

FORWARD = ("_forward_hooks", "_forward_pre_hooks")
BACKWARD = ("_backward_hooks", "_backward_pre_hooks")


def of_hooks(program: StepProgram) -> list[str]:
    """Returns sentences about hooks that are not called, or not as the model calls them."""
    called = {str(node.target) for part in parts_of(program) for node in part.graph.nodes if node.op == "call_module"}
    forward, backward = _hooked(program, FORWARD), _hooked(program, BACKWARD)
    silent = [name for name in forward if not _is_called(name, called)]
    found = []
    if silent:
        found.append(
            f"The forward hooks of {_names(silent)} ran when the model was captured, and do not run with the net: what "
            "they compute of tensors is part of the program, what they keep or print is not renewed. Put a hook on a "
            "layer of torch's own, such as a Linear, or on the net."
        )
    again = [name for name in forward if name not in silent]
    if again and rule_of(program.settings).records:
        found.append(
            f"The forward hooks of {_names(again)} run at every time step, and may run again in backward on the mean "
            "inputs of time bins."
        )
    if backward:
        found.append(
            f"The backward hooks of {_names(backward)} do not run as with the model: a net has no backward pass "
            "through the time steps. Put a hook on a parameter, which sees its whole gradient."
        )
    return found


def _hooked(program: StepProgram, tables: Sequence[str]) -> list[str]:
    return [name for name, module in program.root.named_modules() if any(getattr(module, table) for table in tables)]


def _is_called(name: str, called: set[str]) -> bool:
    """Tells whether a module, or one that it is a part of, is called by the program."""
    parts = name.split(".")
    return any(".".join(parts[:count]) in called for count in range(1, len(parts) + 1))


def _names(paths: Sequence[str]) -> str:
    return ", ".join(path or "the model itself" for path in paths)
