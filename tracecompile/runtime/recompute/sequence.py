"""A whole sequence under the exact rule."""

from __future__ import annotations

import itertools
import weakref
from collections.abc import Mapping, Sequence
from typing import Any

import torch
from torch import Tensor

from tracecompile.rules.written import in_sequence
from tracecompile.runtime.backward.anchors import anchored, with_anchors
from tracecompile.runtime.collector import Collector
from tracecompile.runtime.engine.choice import COMPILED_CHUNK, Choice, choose
from tracecompile.runtime.executes import Executes
from tracecompile.runtime.outside import unseen
from tracecompile.runtime.piece import lengths
from tracecompile.runtime.recompute.cotangents import Cotangents
from tracecompile.runtime.recompute.pieces import How, Moment, Pieces, edges_of
from tracecompile.runtime.recompute.schedule import first_snapshots, reverse
from tracecompile.runtime.recompute.stand_ins import require_unchanged
from tracecompile.runtime.rerun import Prepared, Rerun, of_steps

OF_A_LARGE_LAYER = 8
"""Steps whose graph is held at once, where a layer that takes all steps has a large share of all values of a model."""


class Kept:
    """Snapshots, for as long as autograd keeps the graph.

    Attributes:
        moments: By the piece that begins there, the first one among them.
        rerun: Makes the inputs again, where the prologue has computed them.
    """

    def __init__(self, rerun: Rerun) -> None:
        """Holds nothing yet."""
        self.moments: list[tuple[int, Moment]] = []
        self.rerun = rerun


class Recomputation:
    """One sequence: forward without a graph, and backward piece by piece.

    Attributes:
        pieces: Runs them.
    """

    def __init__(
        self,
        executor: Executes,
        prepared: Prepared,
        statics: Mapping[str, Any],
        steps: int,
        choice: Choice,
        kept: Kept,
    ) -> None:
        """Stands before the first step.

        Args:
            executor: Of the program.
            prepared: What the sequence starts from, with its graph.
            statics: Static values, likewise.
            steps: Number of time steps.
            choice: How the steps are computed.
            kept: Takes the snapshots.
        """
        self.program, self.turn, self.steps = executor.program, executor.turn, steps
        self.prepared = prepared
        axes = tuple(x.dim for x in self.program.inputs)
        how = How(self.program, executor.forms.plain, executor.engine(choice), choice.chunk > 1, axes)
        own = COMPILED_CHUNK if executor.ends.plan is None else OF_A_LARGE_LAYER
        size = choice.chunk if choice.chunk > 1 else self.program.settings.chunk or own
        edges = edges_of(lengths([0, steps], size, self.program.first_apart))
        self.pieces = Pieces(how, edges, statics, prepared.invariants)
        snapshots = self.program.settings.snapshots
        self.snapshots = self.pieces.count if snapshots is None else snapshots
        self._kept = weakref.ref(kept)
        self._leaves = [*prepared.inputs, *prepared.initial, *statics.values(), *prepared.invariants]
        self._leaves += self.pieces.learned
        self._wanted = [isinstance(value, Tensor) and value.requires_grad for value in self._leaves]
        self._versions = [(p, p._version) for p in self.program.root.parameters() if p.requires_grad]

    def forward(self, kept: Kept) -> tuple[Collector, tuple[Tensor, ...]]:
        """Runs the sequence; returns what was collected, and the last states."""
        collector = Collector(self.program, self.steps)
        inputs = [value.detach() for value in self.prepared.inputs]
        keep = set(first_snapshots(self.pieces.count, self.snapshots))
        moment = self.pieces.begin(self.prepared.initial)
        for piece in range(self.pieces.count):
            if piece in keep:
                kept.moments.append((piece, moment))
            moment = self.pieces.forward(moment, piece, inputs, collector)
        return collector, moment.states

    def anchors(
        self, kept: Kept, collected: Sequence[Tensor], states: Sequence[Tensor], learns: Sequence[bool]
    ) -> list[Tensor | None]:
        """Returns an anchor for each collected value and last state that requires a gradient, None for the others."""
        made = [*collected, *states]
        self._places = [place for place, learned in enumerate(learns) if learned]
        shapes = [(tuple(made[at].shape), made[at].dtype, made[at].device) for at in self._places]
        leaves = [value for value, wanted in zip(self._leaves, self._wanted, strict=True) if wanted]
        device = next((value.device for value in made), None)
        self._dtypes = [value.dtype for value in leaves]
        self._forget_inputs()
        _, anchors = anchored(self._backward, kept, device, shapes, leaves)
        found = dict(zip(self._places, anchors, strict=True))
        return [found.get(place) for place in range(len(made))]

    def _forget_inputs(self) -> None:
        """Holds nothing that leads to the graph of the sequence, nor what can be made again."""
        self._leaves = []
        self.prepared = Prepared((), (), (), self.prepared.device)

    def _backward(self, signals: list[Tensor | None]) -> list[Tensor | None]:
        require_unchanged(self._versions)
        kept = self._kept()
        assert kept is not None, "autograd has freed the graph"
        program, pieces = self.program, self.pieces
        placed = dict(zip(self._places, signals, strict=True))
        count = len(program.outputs)
        given = [placed.get(place) for place in range(count + len(program.carries))]
        wanted = self._wanted[: len(program.inputs)]
        shared = (pieces.statics, pieces.invariants, pieces.learned)
        cotangents = Cotangents(program, pieces.how.axes, self.steps, shared, wanted, pieces.how.together)
        cotangents.outputs, cotangents.states = given[:count], given[count:]
        with self.turn, kept.rerun.circumstances(), unseen():
            inputs = kept.rerun.inputs()
            if (before := kept.rerun.prepared.before) is not None:
                cotangents.take_place_of(inputs, before.own)

            def forward(moment: Moment, begin: int, end: int) -> Moment:
                return pieces.again(moment, begin, end, inputs)

            def backward(piece: int, moment: Moment) -> None:
                pieces.backward(moment, piece, inputs, cotangents)

            with in_sequence([pieces.how.form.step]):
                reverse(kept.moments, pieces.count, self.snapshots, forward, backward)
        found = [g for g, wanted in zip(cotangents.gradients(), self._wanted, strict=True) if wanted]
        return [g if g is None else g.to(dtype) for g, dtype in zip(found, self._dtypes, strict=True)]


def recomputed(
    executor: Executes, leaves: Sequence[Any], prepared: Prepared, steps: int, drawn: Sequence[Tensor]
) -> tuple[list[Any], None, list[Tensor]]:
    """Runs a sequence that is to be trained; see ``Executor.sequence``."""
    program, whole = executor.program, prepared
    prepared = of_steps(program, whole)
    given = dict(zip((x.name for x in program.inputs), prepared.inputs, strict=True))
    choice = choose(program, steps, given, executor.work)
    executor.choice = choice
    statics = executor.ends.statics(prepared)
    rerun = Rerun(executor, leaves, prepared, statics, drawn)
    kept = Kept(rerun)
    flags = executor.flow.over(prepared.inputs, prepared.invariants, prepared.initial, steps)
    work = Recomputation(executor, prepared, statics, steps, choice, kept)
    with torch.no_grad(), unseen():
        collector, last = work.forward(kept)
        collected = collector.results()
    anchors = work.anchors(kept, collected, last, list(itertools.chain(*flags)))
    results = with_anchors(collected, anchors[: len(collected)])
    states = with_anchors(last, anchors[len(collected) :])
    again = rerun if program.epilogue_again else None
    return executor.ends.finish(results, states, whole.invariants, again, steps), None, list(last)
