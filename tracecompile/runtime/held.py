"""The states of a step model as the model itself holds them: read, cleared and assigned there by whoever likes to.

The programs keep the states (``LiveState``). After every step each is laid into its place in the model as well, without
a graph. What is found there at the next step is what was laid there, or the caller has put it there: by the model's own
method that clears it, by the library's reset, by assignment.
"""

from __future__ import annotations

from collections.abc import Iterator, Mapping, Sequence
from contextlib import contextmanager
from dataclasses import dataclass, field
from typing import Any

from torch import Tensor, nn

from tracecompile.capture.copying.copies import leaves_of, with_leaf
from tracecompile.errors import InvalidInput
from tracecompile.program import Carry
from tracecompile.runtime.live import count_states
from tracecompile.runtime.watch import Watch

ABSENT = object()
"""Stands for what an attribute that does not exist yet holds."""


@dataclass
class Place:
    """An attribute of the model that holds one state, or several in a container.

    Attributes:
        name: The user's name for it.
        table: What holds it, under ``key``: a module's own dictionary, its buffers, or a dictionary of a library.
        fresh: What was there before the first step of a sequence.
        states: Number of each state, by its name within the attribute.
        template: A container as the model makes it; None for an attribute that is the state.
        laid: What was laid there last; what was there first, as long as nothing was.
        marks: Its tensors, and of each the version and the place in memory.
    """

    name: str
    table: dict[str, Any]
    key: str
    fresh: Any
    states: dict[str, int] = field(default_factory=dict)
    template: Any = None
    laid: Any = None
    marks: list[tuple[Tensor, int, int]] = field(default_factory=list)

    @property
    def now(self) -> Any:
        """What is there now."""
        return self.table.get(self.key, ABSENT)

    def put(self, value: Any) -> None:
        """Puts something there."""
        if value is ABSENT:
            self.table.pop(self.key, None)
        else:
            self.table[self.key] = value

    def lay(self, states: Sequence[Tensor]) -> None:
        """Puts states there."""
        value = self.template
        for name, number in self.states.items():
            value = with_leaf(self.name, value, name, states[number].detach())
        self.put(value)
        self.leave()

    def leave(self) -> None:
        """Takes what is there for what was laid there."""
        self.laid = self.now
        self.marks = [(leaf, *_mark(leaf)) for _, leaf in leaves_of(self.name, self.laid)]

    @property
    def touched(self) -> bool:
        """Whether somebody else has put something there, or written into what was laid."""
        now = self.now
        if now is not self.laid or any((version, memory) != _mark(leaf) for leaf, version, memory in self.marks):
            return True
        if self.template is None or now is self.fresh:
            return False
        return [id(leaf) for _, leaf in leaves_of(self.name, now)] != [id(leaf) for leaf, _, _ in self.marks]

    def assigned(self) -> dict[int, Any]:
        """Returns what somebody else has put there, by the number of the state: a tensor, or None for a fresh one."""
        if not self.touched:
            return {}
        found = dict(leaves_of(self.name, self.now))
        return {number: found.get(name) for name, number in self.states.items()}


class Held:
    """The places of all states that a model keeps itself."""

    def __init__(
        self, model: nn.Module, carries: Sequence[Carry], templates: Mapping[str, Any], before: Held | None
    ) -> None:
        """Finds the places.

        Args:
            model: The user's model.
            carries: Of the program.
            templates: Containers of states as the model makes them, by name.
            before: The places of the program that ran before.
        """
        self.places: dict[str, Place] = {}
        known = {} if before is None else before.places
        for number, carry in enumerate(carries[: count_states(carries)]):
            root = carry.place.partition("[")[0]
            if not root or (root != carry.place and root not in templates):
                continue
            if root not in self.places:
                table, key = _table(model, root)
                was = known.get(root)
                now = table.get(key, ABSENT)
                kept = (now, now, []) if was is None else (was.fresh, was.laid, was.marks)
                fresh, laid, marks = kept
                self.places[root] = Place(root, table, key, fresh, {}, templates.get(root), laid, marks)
            self.places[root].states[carry.place] = number
        self._note()

    def assigned(self) -> dict[int, Any]:
        """Returns what the caller has put into places since the last step, by the number of the state."""
        return {number: value for place in self.places.values() for number, value in place.assigned().items()}

    def written(self) -> bool:
        """Tells whether the caller has written into what was left in a place; what is put there the watch sees."""
        for value, version, memory in self._left:
            if value._version != version or value.data_ptr() != memory:
                return True
        return any(place.touched for place in self._containers) if self._containers else False

    def lay(self, states: Sequence[Tensor], watch: Watch | None) -> bool:
        """Lays states into their places; tells whether the watch has to look again."""
        made = False
        for place in self.places.values():
            place.lay(states)
            made |= watch is None or not watch.follow(place.table, place.key, place.now)
        self._note()
        return made

    def _note(self) -> None:
        """Notes what stands in the places, for ``written``."""
        marks = (mark for place in self.places.values() for mark in place.marks)
        self._left = [mark for mark in marks if not mark[0].is_inference()]
        self._containers = [place for place in self.places.values() if place.template is not None]

    def clear(self, watch: Watch | None) -> None:
        """Leaves every place as it was before the first step."""
        for place in self.places.values():
            if isinstance(place.fresh, Tensor) and isinstance(place.now, Tensor):
                # The model may have been moved, or cast, since.
                place.fresh = place.fresh.to(place.now.device, place.now.dtype)
            place.put(place.fresh)
            place.leave()
            if watch is not None and place.fresh is not ABSENT:
                watch.follow(place.table, place.key, place.fresh)
        self._note()

    def fresh(self) -> dict[str, Any]:
        """Returns what the places hold before the first step, by name."""
        return {name: place.fresh for name, place in self.places.items() if place.fresh is not ABSENT}

    @contextmanager
    def cleared(self) -> Iterator[None]:
        """Lets the model be as before the first step: what is captured meanwhile starts a sequence."""
        held = [(place, place.now) for place in self.places.values()]
        for place, _ in held:
            place.put(place.fresh)
        try:
            yield
        finally:
            for place, value in held:
                place.put(value)


def _table(model: nn.Module, name: str) -> tuple[dict[str, Any], str]:
    path, _, key = name.rpartition(".")
    try:
        held = vars(model.get_submodule(path))
    except AttributeError:  # of a net that was loaded there is no such module
        return {}, key
    memories = held.get("_memories")  # SpikingJelly's states
    tables = [held["_buffers"], *([memories] if isinstance(memories, dict) else []), held]
    return next((table for table in tables if key in table), held), key


def _mark(value: Tensor) -> tuple[int, int]:
    return 0 if value.is_inference() else value._version, value.data_ptr()


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
            raise InvalidInput(
                f"The state {carry.name} has shape {tuple(value.shape)}, and this call needs {tuple(fresh.shape)}.",
                "Call reset() of the converted module before a batch of another size, or set a state of this one.",
            )
    return [*found, *initial[len(found) :]]
