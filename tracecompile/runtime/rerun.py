"""The second pass over a sequence, for learning signals that fall on single steps.

What a bin keeps is enough for signals that are much the same over the bin. For one that falls on a step of its own (a
maximum over time, a first spike) the tangents of that very step are needed, and which step it is the loss says only
afterwards. So the sequence is run forward once more, from the inputs that the caller holds anyway, and the tangents
meet the signals as they go by; the bins are placed anew where the signals are. This costs time, one more forward pass
(two, if neurons that spike are read), and no memory that grows faster than what is read.
"""

from __future__ import annotations

import contextlib
import dataclasses
import warnings
from collections.abc import Callable, Iterator, Mapping, Sequence
from dataclasses import dataclass
from typing import Any, Protocol

import torch
from torch import Tensor

from tracecompile.errors import InvalidInput
from tracecompile.layers import Layer
from tracecompile.program import StepProgram
from tracecompile.rules.measured.adjoint import Derivatives
from tracecompile.runtime.anew import read_by_steps
from tracecompile.runtime.before import Before
from tracecompile.runtime.collector import Collector
from tracecompile.runtime.loop import Loop
from tracecompile.runtime.opened import Opened
from tracecompile.runtime.record import Moment, Record
from tracecompile.runtime.replay import autocast_as, autocast_states, buffers_kept, drawn_again, random_states
from tracecompile.runtime.turn import Turn


@dataclass(frozen=True)
class Prepared:
    """What a sequence starts from."""

    inputs: tuple[Tensor, ...]
    invariants: tuple[Any, ...]
    initial: tuple[Tensor, ...]
    device: torch.device | None
    before: Before | None = None
    """Runs the prologue again for backward, where nothing of it is kept."""

    def tensors(self) -> list[Tensor]:
        """Returns all tensors, with the graph that they come with."""
        return [each for each in (*self.inputs, *self.initial, *self.invariants) if isinstance(each, Tensor)]


def of_steps(program: StepProgram, prepared: Prepared) -> Prepared:
    """Returns what the steps start from: what the epilogue alone reads may be as long as the sequence, and is left out.

    Args:
        program: The program.
        prepared: What its prologue has made.
    """
    read = read_by_steps(program)
    named = zip(program.invariants, prepared.invariants, strict=True)
    return dataclasses.replace(prepared, invariants=tuple(value if name in read else None for name, value in named))


def going_on(program: StepProgram, prepared: Prepared, left: Sequence[Tensor]) -> Prepared:
    """Starts from what the last sequence left of the states that the model keeps.

    Raises:
        InvalidInput: They are those of a batch of another size.
    """
    initial = []
    for carry, fresh, state in zip(program.carries, prepared.initial, left, strict=False):
        if not carry.kept or not isinstance(state, Tensor):
            initial.append(fresh)
            continue
        if state.shape != fresh.shape:
            raise InvalidInput(
                f"The state {carry.name} is left over from a batch of another size.",
                "Call reset() of the converted module before a sequence that does not go on from the last one.",
            )
        initial.append(state)
    return dataclasses.replace(prepared, initial=(*initial, *prepared.initial[len(left) :]))


class Prepares(Protocol):
    """What runs a prologue."""

    def prepare(self, leaves: Sequence[Any]) -> Prepared:
        """Runs it on the leaves of a call."""


class Runs(Protocol):
    """What runs a sequence."""

    program: StepProgram
    turn: Turn

    @property
    def ends(self) -> Prepares:
        """Its prologue."""

    @property
    def opened(self) -> Callable[[], Opened]:
        """Returns the model as it is at this call."""

    def loop(self, prepared: Prepared, statics: Mapping[str, Any], record: Record | None) -> Loop:
        """Returns a loop that stands before the first step."""

    def steps(self, loop: Loop, sequences: Sequence[Tensor], *, seen: bool = True) -> Iterator[Sequence[Tensor]]:
        """Takes a loop over the steps of sequences; yields their outputs.

        Args:
            loop: Stands before them.
            sequences: Of the inputs.
            seen: Whether somebody looks at what each step leaves behind; else that is there after the last one alone.
        """


class Rerun:
    """Everything that is needed to run a sequence once more as it was."""

    def __init__(
        self,
        executor: Runs,
        leaves: Sequence[Any],
        prepared: Prepared,
        statics: Mapping[str, Any],
        drawn: Sequence[Tensor],
    ) -> None:
        """Remembers a sequence at its beginning.

        Args:
            executor: Runs it.
            leaves: Of the call.
            prepared: What the prologue made of them.
            statics: Static values of the sequence.
            drawn: States of torch's generators before the prologue.
        """
        self.executor, self.statics = executor, statics
        self.opened = executor.opened()
        root = executor.program.root
        self.training = [(module, module.training) for module in root.modules()]
        self.autocast = autocast_states(prepared.device)
        self.final: Sequence[Tensor] | None = None
        """The last states, to see whether the second pass comes to the same; None where it may round differently."""
        # Inputs that the prologue has computed are not kept: it is run again, with the same random numbers.
        self.leaves, self.computed = list(leaves), not _are_views(prepared.inputs, leaves)
        self.drawn = drawn
        self.drawn_by_steps = random_states() if executor.program.draws.names else []
        inputs = () if self.computed else prepared.inputs
        self.prepared = dataclasses.replace(of_steps(executor.program, prepared), inputs=inputs)
        kept = [value for value in (*leaves, *self.prepared.inputs) if isinstance(value, Tensor)]
        self.versions = [(value, value._version) for value in kept if not value.is_inference()]

    def inputs(self) -> list[Tensor]:
        """Returns the sequences of inputs, without a graph; for errors see ``_steps``."""
        self._check()
        if self.computed and self.prepared.before is not None:
            return self.prepared.before.inputs()
        prepared = self._prepared_again() if self.computed else self.prepared
        return [value.detach() for value in prepared.inputs]

    def moments(self, record: Record) -> Iterator[Moment]:
        """Yields every step of the sequence, after it was added to ``record``; for errors see ``_steps``."""
        for loop, _ in self._steps(record):
            moment = loop.moment()
            assert moment is not None
            yield moment

    def jacobians(self, layers: Sequence[Layer]) -> dict[str, list[Derivatives]]:
        """Returns the Jacobians of the cores of some layers at every step; for errors see ``_steps``."""
        names = {layer.name for layer in layers}
        found: dict[str, list[Derivatives]] = {name: [] for name in names}
        for loop, _ in self._steps():
            assert loop.last is not None
            for core in loop.form.cores:
                if core.layer in names:
                    found[core.layer].append(core.derivatives(loop.last.of_layers[core.index]))
        return found

    def collected(self, steps: int) -> list[Tensor]:
        """Returns what the epilogue reads of the steps; for errors see ``_steps``."""
        collector = Collector(self.executor.program, steps)
        for _, outputs in self._steps():
            collector.add(outputs)
        return collector.results()

    def invariants(self) -> tuple[Any, ...]:
        """Returns what the prologue makes that does not change over time; for errors see ``_steps``."""
        self._check()
        with self.circumstances():
            return self._prepared_again().invariants

    @contextlib.contextmanager
    def circumstances(self) -> Iterator[None]:
        """Runs what follows under the autocast of the first pass, on the model as it was; moves no buffer."""
        with self.opened.put_back(), buffers_kept(self.executor.program.root), autocast_as(self.autocast):
            yield

    def _steps(self, record: Record | None = None) -> Iterator[tuple[Loop, Sequence[Tensor]]]:
        """Runs the sequence, and fills the record; yields the loop and the outputs after each step.

        Raises:
            RuntimeError: An input was modified in place, or the model's mode changed, since the sequence was run.
        """
        self._check()
        executor = self.executor
        with self.circumstances():
            prepared = self._prepared_again() if self.computed else self.prepared
            prepared = dataclasses.replace(prepared, initial=self.prepared.initial)
            loop = executor.loop(prepared, self.statics, record)
            inputs = [value.detach() for value in prepared.inputs]
            with drawn_again(self.drawn_by_steps):
                for outputs in executor.steps(loop, inputs):
                    yield loop, outputs
            loop.settle()
        if self.final is not None and not _same(loop.states, self.final):
            warnings.warn(
                "The second pass over the sequence did not come to the same states as the first: an operation of the "
                "model is not deterministic, and the gradient is that of the second pass.",
                RuntimeWarning,
                stacklevel=2,
            )

    def _prepared_again(self) -> Prepared:
        with drawn_again(self.drawn):
            return self.executor.ends.prepare(self.leaves)

    def _check(self) -> None:
        if any(value._version != version for value, version in self.versions):
            raise RuntimeError(
                "An input was modified in place between the forward and the backward pass, which runs the sequence "
                "once more because the loss reads single time steps. Pass a copy, or call backward before."
            )
        if any(module.training != training for module, training in self.training):
            raise RuntimeError(
                "The model was switched between train() and eval() after the forward pass, and the loss reads single "
                "time steps, for which backward runs the sequence once more. Call backward before."
            )


def _same(one: Sequence[Tensor], other: Sequence[Tensor]) -> bool:
    return all(torch.equal(now, before) for now, before in zip(one, other, strict=True))


def _are_views(inputs: Sequence[Tensor], leaves: Sequence[Any]) -> bool:
    """Tells whether all inputs share the memory of a leaf, so that keeping them costs none."""
    owned = {leaf.untyped_storage().data_ptr() for leaf in leaves if isinstance(leaf, Tensor)}
    return all(value.untyped_storage().data_ptr() in owned for value in inputs)
