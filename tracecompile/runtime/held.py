"""The states of a step model as the model itself holds them: read, cleared and assigned there by whoever likes to.

The programs keep the states (``LiveState``). After every step each is laid into its place in the model as well, without
a graph. What is found there at the next step is what was laid there, or the caller has put it there: by the model's own
method that clears it, by the library's reset, by assignment.
"""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from dataclasses import dataclass
from typing import Any

from torch import Tensor, nn

from tracecompile.errors import InvalidInput
from tracecompile.program import Carry
from tracecompile.runtime.live import count_states
from tracecompile.runtime.watch import Watch

ABSENT = object()
"""Stands for what an attribute that does not exist yet holds."""


@dataclass
class Place:
    """Where one state is.

    Attributes:
        name: The user's name for it.
        table: What holds it, under ``key``: a module's own dictionary, its buffers, or a dictionary of a library.
        fresh: What was there before the first step of a sequence.
        laid: What the programs have left there.
        mark: Of that tensor's memory, when it was left.
    """

    name: str
    table: dict[str, Any]
    key: str
    fresh: Any
    laid: Any
    mark: tuple[int, int] | None = None

    @property
    def now(self) -> Any:
        """What is there now."""
        return self.table.get(self.key, ABSENT)

    def lay(self, value: Any) -> None:
        """Puts something there."""
        if value is ABSENT:
            self.table.pop(self.key, None)
        else:
            self.table[self.key] = value
        self.laid, self.mark = value, _mark(value)

    @property
    def touched(self) -> bool:
        """Whether something else is there, or the tensor that was left has been written into."""
        now = self.now
        return now is not self.laid or (self.mark is not None and _mark(now) != self.mark)


class Held:
    """The places of all states that a model keeps itself; those in containers of its own are left as they are."""

    def __init__(self, model: nn.Module, carries: Sequence[Carry], before: Held | None) -> None:
        """Finds the places.

        Args:
            model: The user's model.
            carries: Of the program.
            before: The places of the program that ran before.
        """
        self.places: dict[int, Place] = {}
        known = {} if before is None else {(id(each.table), each.key): each for each in before.places.values()}
        for position, carry in enumerate(carries[: count_states(carries)]):
            found = _find(model, carry.place)
            if found is not None:
                table, key = found
                now = table.get(key, ABSENT)
                place = known.get((id(table), key)) or Place(carry.place, table, key, now, now)
                self.places[position] = place

    def assigned(self) -> dict[int, Any]:
        """Returns what the caller has put into places since the last step, by the number of the state."""
        return {number: place.now for number, place in self.places.items() if place.touched}

    @property
    def touched(self) -> bool:
        """Whether the caller has put something into a place, or written into what was left there."""
        return any(place.touched for place in self.places.values())

    def lay(self, states: Sequence[Tensor], watch: Watch | None) -> bool:
        """Lays states into their places; tells whether the watch has to look again."""
        made = False
        for number, place in self.places.items():
            place.lay(states[number].detach())
            made |= watch is None or not watch.follow(place.table, place.key, place.laid)
        return made

    def clear(self) -> None:
        """Leaves every place as it was before the first step."""
        for place in self.places.values():
            place.lay(place.fresh)

    def fresh(self) -> dict[str, Any]:
        """Returns what the places hold before the first step, by the names of the states."""
        return {place.name: place.fresh for place in self.places.values() if place.fresh is not ABSENT}

    @contextmanager
    def cleared(self) -> Iterator[None]:
        """Lets the model be as before the first step: what is captured meanwhile starts a sequence."""
        held = [(place, place.now) for place in self.places.values() if place.laid is not place.fresh]
        for place, _ in held:
            place.lay(place.fresh)
        try:
            yield
        finally:
            for place, value in held:
                place.lay(value)


def _mark(value: Any) -> tuple[int, int] | None:
    return (value._version, value.data_ptr()) if isinstance(value, Tensor) and not value.is_inference() else None


def _find(model: nn.Module, name: str) -> tuple[dict[str, Any], str] | None:
    path, _, key = name.rpartition(".")
    if not name or "[" in name:
        return None
    try:
        module = model.get_submodule(path)
    except AttributeError:
        return None
    held = vars(module)
    memories = held.get("_memories")  # SpikingJelly's states
    tables = [held["_buffers"], *([memories] if isinstance(memories, dict) else []), held]
    return next((table for table in tables if key in table), held), key


def merged(carries: Sequence[Carry], initial: Sequence[Any], given: Sequence[Any]) -> list[Any]:
    """Returns the states to start a step from.

    Args:
        carries: Of the program.
        initial: As a sequence starts.
        given: For each state what to go on from: a tensor, or anything else for a fresh one.

    Raises:
        InvalidInput: A tensor has another shape than the state.
    """
    found = []
    for carry, fresh, value in zip(carries, initial, given, strict=False):
        if not isinstance(value, Tensor) or value.numel() == 0:
            found.append(fresh)
        elif not isinstance(fresh, Tensor) or value.shape == fresh.shape:
            found.append(value)
        elif value.ndim == 0 or not bool(value.any()):
            found.append(value.expand(fresh.shape) if value.ndim == 0 else fresh)
        else:
            shapes = f"{tuple(value.shape)}, and not {tuple(fresh.shape)}"
            raise InvalidInput(
                f"The state {carry.name} was set to a tensor of shape {shapes}.",
                "Call reset() of the converted module, or assign a state of this batch.",
            )
    return [*found, *initial[len(found) :]]
