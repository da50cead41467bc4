"""The states of a step model, and the runs that show them."""

from __future__ import annotations

from dataclasses import dataclass

from torch import fx, nn
from torch.utils import _pytree as pytree

from tracecompile.capture.copying.copies import share_parameters
from tracecompile.capture.steps.explicit import StateArguments
from tracecompile.capture.tracing.build import read_by_value
from tracecompile.capture.tracing.step_mode import in_single_steps
from tracecompile.capture.tracing.tape import Tape
from tracecompile.errors import SourceLine, UnsupportedState
from tracecompile.operations.cone import cone


@dataclass(frozen=True)
class State:
    """One state of the steady step.

    Attributes:
        name: The user's name for it.
        placeholder: What hands it to the step, in the tape.
        following: What it becomes.
        leaf: Its position among the leaves of the arguments, None for an attribute.
        statistic: Whether it is a statistic of the model, and no state of a neuron.
    """

    name: str
    placeholder: fx.Node
    following: fx.Node
    leaf: int | None
    statistic: bool = False


class StepRuns:
    """The first and the steady run of a step model, side by side: each shows what the other cannot."""

    def __init__(
        self, model: nn.Module, arguments: StateArguments, first: Tape, steady: Tape, states: list[State]
    ) -> None:
        self.root = in_single_steps(share_parameters(model))
        self.model = model
        self.arguments = arguments
        self.first = first
        self.steady = steady
        self.states = states
        self.leaves: dict[str, nn.Module] = {**first.leaves, **steady.leaves}
        self.left_over: list[tuple[str, SourceLine | None]] = []
        """States that start from the rows of an earlier batch, with the line that reads each."""
        for tape in (first, steady):
            for name, value in tape.constants.items():
                self.root.register_buffer(name, value, persistent=False)


def live_states(steady: Tape, arguments: StateArguments, statistics: tuple[str, ...]) -> list[State]:
    """Returns the states that the outputs depend on, sooner or later, and after them all statistics."""
    leaves = pytree.tree_leaves(steady.result)
    candidates = []
    for leaf, result in zip(arguments.leaves, arguments.results, strict=True):
        placeholder, following = steady.inputs[leaf], leaves[result]
        if placeholder is None or not isinstance(following, fx.Node):
            continue
        candidates.append(State(arguments.names[leaf], placeholder, following, leaf))
    for name, placeholder in steady.states.items():
        if name not in steady.attributes:
            raise UnsupportedState(
                f"The state {name} is gone after one step.", "Keep the state as a tensor from step to step."
            )
        candidates.append(State(name, placeholder, steady.attributes[name], None, name in statistics))
    candidates.sort(key=lambda state: state.statistic)
    wanted = [state for state in candidates if state.leaf is not None or state.statistic]
    # What only lends its shape, as in zeros_like(mem), is no state.
    needed = read_by_value([*leaves, *[state.following for state in wanted]])
    live: list[State] = []
    while True:
        found = [
            state for state in candidates if state not in live and (state.placeholder in needed or state in wanted)
        ]
        if not found:
            # Where there is a state at all, one that lends its shape to the step has to be handed in with it.
            lent = cone([*leaves, *[state.following for state in live]]) if live else set()
            return [state for state in candidates if state in live or state.placeholder in lent]
        live += found
        needed |= read_by_value([state.following for state in found])
