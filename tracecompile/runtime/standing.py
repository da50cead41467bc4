"""How the user's model stands to what was captured of it: what was changed since, and what states were put into it."""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from typing import Any

from torch import Tensor, nn

from tracecompile.compiled import moving
from tracecompile.errors import InvalidInput
from tracecompile.facts import Facts
from tracecompile.own_checks import after_a_call
from tracecompile.program import StepProgram
from tracecompile.runtime.held import Held
from tracecompile.runtime.live import LiveState
from tracecompile.runtime.opened import Opened
from tracecompile.runtime.watch import Watch
from tracecompile.segment import lasting


class Standing:
    """A watch over a model, and the places of its states."""

    def __init__(self, model: nn.Module) -> None:
        """Looks at nothing yet."""
        self.model = model
        self._watch: Watch | None = None
        self._held: Held | None = None
        self._templates: dict[str, Any] = {}
        self._moving: frozenset[str] = frozenset()
        self._as_left = False

    def learn_containers(self, program: StepProgram, args: tuple[Any, ...], kwargs: dict[str, Any]) -> None:
        """Finds out, by one call of a copy of the model, in what containers it keeps states."""
        names = {carry.place.partition("[")[0] for carry in lasting(program) if "[" in carry.place}
        if names - self._templates.keys():
            copied = after_a_call(self.model, args, kwargs)
            self._templates = {name: value_at(copied, name) for name in names}

    def holds(self) -> bool:
        """Tells whether the model is as it was at the last call, its states in their places included."""
        watch, held = self._watch, self._held
        self._as_left = watch is not None and watch.holds() and not (held is not None and held.written())
        return self._as_left

    def look(self, program: StepProgram) -> Facts:
        """Takes the model as it is now for what runs; returns its facts."""
        self._held = Held(self.model, lasting(program), self._templates, self._held)
        self._moving = moving(program)
        self._watch = Watch(self.model, self._moving, self._watch)
        return Facts(self.model)

    def require_untouched(self) -> None:
        """Refuses to go on with states of which somebody has set one in the model since the last step.

        Raises:
            InvalidInput: There is one.
        """
        if self.assigned():
            raise InvalidInput(
                "A state was set from outside since the last step.", "Set the rows of these samples there as well."
            )

    def opened(self) -> Opened:
        """Returns the model as it is at this call."""
        return Opened(self.model, self._watch)

    def assigned(self) -> dict[int, Any]:
        """Returns what the caller has put into the model since the last step, by the number of the state."""
        return {} if self._held is None else self._held.assigned()

    @contextmanager
    def afresh(self) -> Iterator[None]:
        """Lets the model be as before the first step of a sequence while the context is open."""
        if self._held is None:
            yield
        else:
            with self._held.cleared():
                yield

    def given(self, program: StepProgram, live: LiveState) -> Sequence[Any] | None:
        """Returns what a step goes on from: the live states, or what the caller has put into the model.

        Returns:
            For each state a tensor, or anything else where it starts afresh; None where all do.

        Raises:
            InvalidInput: Some states were assigned, and steps that are to be trained came before.
        """
        assigned = {} if self._as_left else self.assigned()
        if not assigned:
            return live.states
        carries = lasting(program)
        count = len(carries)
        left = live.states
        if left is not None and len(assigned) < count and live.window is not None and not live.window.closed:
            names = ", ".join(carries[number].name for number in assigned)
            others = next(carry.name for number, carry in enumerate(carries) if number not in assigned)
            raise InvalidInput(
                f"{names} was set from outside, and {others} goes on: what the others learn of the steps before would "
                "be lost.",
                "Set all states, call reset() of the converted module, or call backward before.",
            )
        live.clear()
        found = [assigned.get(number, None if left is None else left[number]) for number in range(count)]
        return found if any(isinstance(value, Tensor) for value in found) else None

    def lay(self, live: LiveState) -> None:
        """Lays the live states into their places in the model."""
        if self._held is not None and live.states is not None and self._held.lay(live.states, self._watch):
            self._watch = Watch(self.model, self._moving, self._watch)

    def clear(self) -> None:
        """Leaves the places of states as they were before the first step."""
        if self._held is not None:
            # What else was changed meanwhile is still to be seen.
            self._held.clear(self._watch)

    def fresh(self) -> dict[str, Any]:
        """Returns what the places of states hold before the first step, by name."""
        return {} if self._held is None else self._held.fresh()


def value_at(model: nn.Module, name: str) -> Any:
    """Returns an attribute by its dotted path."""
    path, _, key = name.rpartition(".")
    return vars(model.get_submodule(path)).get(key)
