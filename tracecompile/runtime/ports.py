"""Ports: the values of a step that the user can read, through which learning signals come."""

from __future__ import annotations

from dataclasses import dataclass
from typing import Literal

from tracecompile.analysis.graph_view import StepView
from tracecompile.layers import Source
from tracecompile.program import StepProgram, final_states_read, step_results


@dataclass(frozen=True)
class Port:
    """A value that the user can read.

    Attributes:
        source: The node of the step, and who made it how many steps ago.
        when: "each" where the values of all steps can be told apart, "sum" where only their sum is read, "last" where
            the last one is.
    """

    source: Source
    when: Literal["each", "sum", "last"]


_TIMES: dict[str, Literal["each", "sum", "last"]] = {"stack": "each", "step": "each", "sum": "sum", "last": "last"}


def find_ports(program: StepProgram) -> tuple[Port | None, ...]:
    """Returns the ports of the outputs, then of the final states; None for what no layer makes or nobody reads."""
    view = StepView(program)
    made = {output for layer in program.layers for output in layer.outputs}
    outputs, states = step_results(program.step)
    times = [_TIMES[output.collect] for output in program.outputs]
    wanted = [(node, when, True) for node, when in zip(outputs, times, strict=True)]
    wanted += [(node, "last", used) for node, used in zip(states, final_states_read(program), strict=True)]
    ports: list[Port | None] = []
    for node, when, used in wanted:
        origin, delay = view.origin(node)
        value = node.meta["val"]
        is_port = used and origin.name in made and value.is_floating_point()
        ports.append(Port(Source(node.name, origin.name, delay), when) if is_port else None)
    return tuple(ports)
