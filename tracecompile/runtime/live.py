"""What a converted module remembers between calls."""

from __future__ import annotations

import weakref
from collections.abc import Mapping, Sequence
from typing import Any

import torch
from torch import Tensor

from tracecompile.analysis.differentiable import Flags
from tracecompile.errors import InvalidInput
from tracecompile.parallel import passed_on
from tracecompile.program import Carry, StepProgram
from tracecompile.runtime.layout import checked, joined, with_layout
from tracecompile.runtime.owed import Owed
from tracecompile.runtime.recompute.steps import KeptSteps
from tracecompile.runtime.window import Window

WINDOW = "window|"
"""Before the keys of a snapshot's window."""


def count_states(carries: Sequence[Carry]) -> int:
    """Returns how many carries are states: statistics, which the model holds, come after them."""
    return sum(not carry.statistic for carry in carries)


class LiveState:
    """States, and the open window of a stream or a step model.

    Attributes:
        states: The states after the last step, in the order of the carries, which statistics end; None at the start of
            a sequence.
        shapes: Of the tensors that the last step was called with.
        window: What is being recorded since the last backward.
        flags: Whether each of these states requires a gradient, as the model's own would; None where they say so.
        returned: The states as they were given to the caller, to recognise them when they come back.
        sequence: The window of the last whole sequence, as long as its outputs live.
        pending: What ``restore`` brought for the window that the next step opens.
        owed: Steps of a stream that the states have gone through, and of which the outputs were not given yet.
        restored: Whether the states are those of a snapshot, and no step has been made since.
    """

    def __init__(self) -> None:
        """Starts before the first step."""
        self.window: Window | KeptSteps | None = None
        self.owed: Owed | None = None
        self.clear()

    def clear(self) -> None:
        """Forgets everything."""
        self.states: Sequence[Tensor] | None = None
        self.shapes: list[torch.Size] = []
        self.flags: Flags | None = None
        self.close_window()
        self.returned: tuple[Tensor, ...] | None = None
        self.pending: dict[str, Tensor] = {}
        self.sequence: weakref.ref[Window] | None = None
        self.restored, self.owed = False, None

    def flags_of(self, states: Sequence[Tensor]) -> Sequence[object]:
        """Returns what says whether each state at the beginning of a step requires a gradient."""
        own = self.states is not None and all(one is other for one, other in zip(states, self.states, strict=False))
        if not own or self.flags is None:
            return states
        return (*self.flags, *states[len(self.flags) :])

    def relay(self, before: Sequence[Carry], now: Sequence[Carry]) -> None:
        """Lays the states out for another program of the same model, such as that of its other mode.

        Args:
            before: Of the program that left the states, without statistics.
            now: Of the program that goes on from them, likewise.

        Raises:
            InvalidInput: That program has a state which the other one has not.
        """
        if self.states is None or [carry.name for carry in before] == [carry.name for carry in now]:
            return
        states = dict(zip((carry.name for carry in before), self.states, strict=False))
        flags = dict(zip(states, self.flags or (), strict=False))
        missing = [carry.name for carry in now if carry.name not in states]
        if missing:
            raise InvalidInput(
                f"The state {missing[0]} is kept in this mode of the model alone.",
                "Call reset() of the converted module before a sequence in another mode.",
            )
        self.states = [states[carry.name] for carry in now]
        self.flags = None if self.flags is None else tuple(flags[carry.name] for carry in now)

    def go_on(self, states: Sequence[Tensor], carries: Sequence[Carry], through_time: bool) -> None:
        """Takes the states after a step.

        Args:
            states: In the order of the carries.
            carries: Of the program.
            through_time: Whether autograd follows them from step to step.
        """
        lasting = states[: count_states(carries)]
        self.states = [state.detach() if state.requires_grad and not through_time else state for state in lasting]
        self.flags, self.owed = None, None

    def close_window(self) -> None:
        """Records nothing more in the open window, if there is one."""
        if self.window is not None:
            self.window.close()
        self.window = None

    def detach(self) -> None:
        """Goes on from the same states, to which no gradient comes back any more."""
        self.close_window()
        self.pending, self.flags, self.owed = {}, None, None
        self.states = None if self.states is None else [state.detach() for state in self.states]

    def with_assigned(self, assigned: Mapping[int, Any], count: int) -> LiveState:
        """Returns what a step would go on from, where the caller has put states into the model.

        Args:
            assigned: By the number of the state: a tensor, or anything else for a fresh one.
            count: Number of states.

        Raises:
            InvalidInput: Some are cleared, and others go on.
        """
        left = self.states
        found = [assigned.get(number, None if left is None else left[number]) for number in range(count)]
        live = LiveState()
        live.states = [value for value in found if isinstance(value, Tensor)] or None
        if live.states is not None and len(live.states) < count:
            raise InvalidInput(
                "Some states were cleared, and others go on: a snapshot holds all of them or none.",
                "Clear or set all of them, or take the snapshot after the next step.",
            )
        return live

    def snapshot(self, program: StepProgram) -> dict[str, Tensor]:
        """Returns copies of the live tensors of a net by name, and their layout."""
        found = {joined("state", index): state for index, state in enumerate(self.states or ())}
        is_open = self.window is not None and not self.window.closed
        window = self.window.tensors() if self.window is not None and is_open else self.pending
        found |= {f"{WINDOW}{name}": tensor for name, tensor in window.items()}
        sequence = self.sequence() if self.sequence is not None else None
        if sequence is not None and not sequence.closed:
            # Not to be restored, since a sequence ends with its call; but it is held for backward.
            found |= {f"sequence|{name}": tensor for name, tensor in sequence.tensors().items()}
        return with_layout(program, {name: tensor.detach().clone() for name, tensor in found.items()})

    def restore(self, program: StepProgram, snapshot: Mapping[str, Tensor]) -> None:
        """Takes over a snapshot.

        Raises:
            InvalidInput: It is none of this net; everything stays as it was.
        """
        found = {name: tensor.clone() for name, tensor in checked(program, snapshot).items()}
        self.clear()
        states = [name for name in found if name.startswith(joined("state", ""))]
        if states:
            self.states = [found[joined("state", index)] for index in range(len(states))]
            self.restored = True
        self.pending = {name.removeprefix(WINDOW): tensor for name, tensor in found.items() if name.startswith(WINDOW)}

    def is_next(self, states: Sequence[Tensor], positions: Sequence[int]) -> bool:
        """Tells whether states that were handed in are those that the last step returned, or those of a snapshot.

        Args:
            states: As handed in.
            positions: Their numbers among the carries.
        """
        if self.returned is not None:
            return all(passed_on(state, self.returned[place]) for state, place in zip(states, positions, strict=True))
        own = self.states if self.restored else None
        # They have come by another way than the snapshot, which holds copies.
        return own is not None and all(
            torch.equal(state, own[place]) for state, place in zip(states, positions, strict=True)
        )
