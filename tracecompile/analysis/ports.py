"""Ports: the values of a step that the user can read, through which learning signals come.

Most are made by a layer. What no layer makes, the user may read as well: an input as it came, and a value that does not
change over time. Signals on those go straight to the input, or to the parameters that the value is computed from.
"""

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
        when: "each" where the values of all steps can be told apart (or only some are added up), "sum" where only the
            sum of all is read, "last" where the last one is.
        direct: Whether no layer made it: an input, or a value that is the same at every step.
    """

    source: Source
    when: Literal["each", "sum", "last"]
    direct: bool = False


_TIMES: dict[str, Literal["each", "sum", "last"]] = {"stack": "each", "step": "each", "sum": "sum", "last": "last"}


def find_ports(program: StepProgram) -> tuple[Port | None, ...]:
    """Returns the ports of the outputs, then of the final states; None for whole numbers and what nobody reads."""
    view = StepView(program)
    made = {output for layer in program.layers for output in layer.outputs}
    direct = {x.name for x in program.inputs} | set(program.draws.names) | static_names(program)
    outputs, states = step_results(program.step)
    times = ["each" if output.chosen is not None else _TIMES[output.collect] for output in program.outputs]
    wanted = [(node, when, True) for node, when in zip(outputs, times, strict=True)]
    wanted += [(node, "last", used) for node, used in zip(states, final_states_read(program), strict=True)]
    ports: list[Port | None] = []
    for node, when, used in wanted:
        origin, delay = view.origin(node)
        value = node.meta["val"]
        is_port = used and origin.name in made | direct and value.is_floating_point()
        source = Source(node.name, origin.name, delay)
        ports.append(Port(source, when, origin.name in direct) if is_port else None)
    return tuple(ports)


def static_names(program: StepProgram) -> frozenset[str]:
    """Returns the names of the values that do not change over time, invariants aside."""
    return frozenset(program.statics.names if program.statics is not None else ()) - frozenset(program.invariants)
