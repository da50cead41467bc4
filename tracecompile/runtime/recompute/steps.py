"""Single steps under the exact rule: a model of one step, or a stream.

Their inputs cannot be read twice, so that those of the steps since the last backward are kept.
"""

from __future__ import annotations

import weakref
from collections.abc import Mapping, Sequence

import torch
from torch import Tensor

from tracecompile.analysis.ports import Port
from tracecompile.errors import InvalidInput
from tracecompile.runtime.backward.anchors import Inbox, Place, StepFunction, anchored
from tracecompile.runtime.backward.given import GivenInputs
from tracecompile.runtime.bins import StreamClock
from tracecompile.runtime.engine.choice import COMPILED_CHUNK
from tracecompile.runtime.executes import Executes
from tracecompile.runtime.loop import Loop
from tracecompile.runtime.outside import unseen
from tracecompile.runtime.owed import Owed, refuse_owed
from tracecompile.runtime.recompute.cotangents import Cotangents
from tracecompile.runtime.recompute.pieces import Change, How, Moment, Pieces, draws_in_steps, edges_of
from tracecompile.runtime.recompute.schedule import reverse
from tracecompile.runtime.recompute.stand_ins import require_unchanged
from tracecompile.runtime.replay import autocast_as, autocast_states, buffers_kept
from tracecompile.runtime.rerun import Prepared


class Kept:
    """What steps start from and read, for as long as autograd keeps the graph.

    Attributes:
        inputs: Of every step, with the version of each.
        drawn: States of torch's generators before every step, where the steps draw random numbers.
        moments: By the piece that begins there, the first one among them.
        changes: What was done to the states before a step, by its number.
    """

    def __init__(self) -> None:
        """Holds nothing yet."""
        self.changes: dict[int, Change] = {}
        self.inputs: list[list[tuple[Tensor, int]]] = []
        self.drawn: list[tuple[Tensor, ...]] = []
        self.moments: list[tuple[int, Moment]] = []
        self._stride = 1

    def keep(self, piece: int, moment: Moment, snapshots: int | None) -> None:
        """Keeps a moment; every other one no more, where there are too many."""
        if piece % self._stride == 0:
            self.moments.append((piece, moment))
        if snapshots is not None and len(self.moments) > snapshots:
            self._stride *= 2
            self.moments = [each for each in self.moments if each[0] % self._stride == 0]


class KeptSteps:
    """The steps since the last backward.

    Attributes:
        closed: True once backward has run: the next step begins others.
        loop: What runs them.
        owed: As that of a window.
    """

    def __init__(self, executor: Executes, start: Prepared) -> None:
        """Begins with the prepared states.

        Args:
            executor: Of the program.
            start: What the first step begins with.
        """
        self.executor, self.start, self.program = executor, start, executor.program
        self._opened = executor.opened()
        self.closed, self.draws = False, draws_in_steps(self.program)
        self.owed: Owed | None = None
        self.size, self.snapshots = self.program.settings.chunk or COMPILED_CHUNK, self.program.settings.snapshots
        self.statics = executor.ends.statics(start)
        self.loop: Loop | None = executor.loop(start, self.statics, None)
        self._given, self._inbox = GivenInputs(), Inbox(StreamClock(1), False)
        self._held: Kept | None = Kept()
        self._kept: weakref.ref[Kept] = weakref.ref(self._held)
        self._root: Tensor | None = None
        axes = (0,) * len(self.program.inputs)
        self._how = How(self.program, executor.forms.plain, executor.as_they_are, False, axes)
        self._learned = [p for p in executor.forms.plain.step.parameters() if p.requires_grad]
        self._leaves = [*start.initial, *self.statics.values(), *start.invariants, *self._learned]
        self._wanted = [isinstance(value, Tensor) and value.requires_grad for value in self._leaves]
        self._versions = [(p, p._version) for p in self.program.root.parameters() if p.requires_grad]
        self._autocast = autocast_states(start.device)
        self._last: Sequence[Tensor] = start.initial

    def goes_on(self, prepared: Prepared) -> bool:
        """Tells whether a step begins with what the last one left; where it starts afresh, other steps begin with it.

        Raises:
            InvalidInput: It does, and what it takes beside is not like that of the steps before.
        """
        carries = zip(self.program.carries, self._last, prepared.initial, strict=True)
        if not all(carry.statistic or _same(last, now) for carry, last, now in carries):
            return False
        self._require_same_invariants(prepared)
        self._require_same_shapes(prepared)
        return True

    @property
    def room(self) -> int:
        """How many steps may be run together: as many as backward runs again from a moment that is kept."""
        assert self._held is not None
        return self.size - len(self._held.inputs) % self.size

    def take(self, prepared: Prepared, drawn: Sequence[Tensor], since: int = 0) -> None:
        """Keeps what a step has begun with, one after the other.

        Args:
            prepared: What that is; of steps that were run together only the first has its states.
            drawn: States of torch's generators before it, where it draws random numbers.
            since: How many steps were run after it.
        """
        kept, loop = self._held, self.loop
        assert kept is not None
        assert loop is not None
        number = len(kept.inputs)
        if number % self.size == 0:
            states = tuple(state.detach() for state in prepared.initial)
            kept.keep(number // self.size, Moment(states, tuple(drawn)), self.snapshots)
        kept.inputs.append([(value.detach(), value._version) for value in prepared.inputs])
        kept.drawn.append(tuple(drawn))
        self._last = loop.states
        inputs = zip(self.program.inputs, prepared.inputs, strict=True)
        self._given.take(number, {x.name: value for x, value in inputs})

    def places(self, steps: int) -> list[Place]:
        """Returns where learning signals on the latest steps belong."""
        assert self._held is not None
        end = len(self._held.inputs)
        return [(number, number) for number in range(end - steps, end)]

    def change(self, change: Change) -> Sequence[Tensor]:
        """Does something to the states that the next step begins with, and once more when the steps are run again."""
        kept = self._held
        assert kept is not None
        number, before = len(kept.inputs), kept.changes.get(len(kept.inputs))
        kept.changes[number] = change if before is None else lambda states: change(before(states))
        with torch.no_grad():
            self._last = change(self._last)
        return self._last

    def _require_same_invariants(self, prepared: Prepared) -> None:
        for name, first, now in zip(self.program.invariants, self.start.invariants, prepared.invariants, strict=True):
            same = torch.equal(first, now) if isinstance(now, Tensor) and isinstance(first, Tensor) else first == now
            if first is not now and not same:
                raise InvalidInput(
                    f"{name} is another one than in the steps before, which are still to be trained.",
                    "Call backward, detach() or reset() of the converted module before it changes.",
                )

    def _require_same_shapes(self, prepared: Prepared) -> None:
        """Refuses a batch of another size, which states that belong to no sample survive."""
        assert self._held is not None
        for x, value, (first, _) in zip(self.program.inputs, prepared.inputs, self._held.inputs[0], strict=True):
            if value.shape != first.shape:
                raise InvalidInput(
                    f"{x.name} has shape {tuple(value.shape)}, and {tuple(first.shape)} in the steps before, which are "
                    "still to be trained.",
                    "Call backward, detach() or reset() of the converted module before a batch of another size.",
                )

    def step_anchors(
        self, ports: Sequence[Port | None], values: Sequence[Tensor], wanted: Sequence[bool], place: Place
    ) -> list[Tensor | None]:
        """Returns the anchor of every value of a step that requires a gradient."""
        kept = self._kept()
        assert kept is not None
        if self._root is None:
            leaves = [value for value, need in zip(self._leaves, self._wanted, strict=True) if need]
            self._dtypes = [value.dtype for value in leaves]
            device = next((value.device for value in values), None)
            self._root, _ = anchored(self._backward, kept, device, [], [*leaves, self._given.end])
            self._leaves = []
        root, inbox = self._root, self._inbox
        return [
            StepFunction.apply(root, inbox, index, *place, value) if learns else None
            for index, (value, learns) in enumerate(zip(values, wanted, strict=True))
        ]

    def close(self) -> None:
        """Ends the window for further steps; backward through what it has given remains possible."""
        self.closed = True
        self._root = self._held = self.loop = None

    def tensors(self) -> dict[str, Tensor]:
        """Returns what a snapshot of the net holds of the open window: nothing, its steps are not gone on from."""
        return {}

    def load(self, tensors: Mapping[str, Tensor]) -> None:
        """Goes on from what ``tensors`` returned."""

    def _backward(self, signals: list[Tensor | None]) -> list[Tensor | None]:
        kept = self._kept()
        assert kept is not None, "autograd has freed the graph"
        refuse_owed(self.owed, "backward")
        self.close()
        require_unchanged(self._versions)
        if any(value._version != version for row in kept.inputs for value, version in row):
            raise RuntimeError(
                "An input of an earlier step was modified in place before backward, which runs the steps again. Pass "
                "a copy to every step, or call backward before."
            )
        steps, program = len(kept.inputs), self.program
        lengths = [min(self.size, steps - begin) for begin in range(0, steps, self.size)]
        pieces = Pieces(self._how, edges_of(lengths), self.statics, self.start.invariants, kept.drawn, kept.changes)
        wanted = [x.name in self._given.names for x in program.inputs]
        shared = (self.statics, self.start.invariants, self._learned)
        cotangents = Cotangents(program, self._how.axes, steps, shared, wanted)
        cotangents.of_steps = self._inbox.take()
        inputs = [torch.stack([row[place][0] for row in kept.inputs]) for place in range(len(program.inputs))]

        def forward(moment: Moment, begin: int, end: int) -> Moment:
            return pieces.again(moment, begin, end, inputs)

        def backward(piece: int, moment: Moment) -> None:
            pieces.backward(moment, piece, inputs, cotangents)

        with (
            self.executor.turn,
            self._opened.put_back(),
            buffers_kept(program.root),
            autocast_as(self._autocast),
            unseen(),
        ):
            reverse(kept.moments, pieces.count, self.snapshots or pieces.count, forward, backward)
        found = cotangents.gradients()
        by_name = {x.name: gradient for x, gradient in zip(program.inputs, found, strict=False)}
        self._given.pass_on(lambda name, step: None if (rows := by_name[name]) is None else rows[step])
        chosen = [g for g, need in zip(found[len(program.inputs) :], self._wanted, strict=True) if need]
        return [*(g if g is None else g.to(t) for g, t in zip(chosen, self._dtypes, strict=True)), None]


def _same(one: Tensor, other: Tensor) -> bool:
    return one is other or (one.data_ptr() == other.data_ptr() and one.shape == other.shape)
