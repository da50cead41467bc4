"""Model and converted module at sizes that the capture never saw; what the model itself refuses is found out."""

from __future__ import annotations

from collections.abc import Iterable, Sequence
from dataclasses import replace
from typing import Any

import torch
from torch import Tensor
from torch.utils import _pytree as pytree

from tracecompile.capture.loops.lengths import TimeSource
from tracecompile.capture.loops.resizing import first_tensor, resized
from tracecompile.diagnostics.activity import Spikes
from tracecompile.program import StepProgram
from tracecompile.rules import rule_of
from tracecompile.self_check.flat import require_flat_memory
from tracecompile.self_check.generators import generators_kept
from tracecompile.self_check.gradients import dtypes_of
from tracecompile.self_check.in_order import Adding
from tracecompile.self_check.inputs import Arguments, Size, Varied, batch_axes
from tracecompile.self_check.pair import ModelRefuses, Pair, Run, undisturbed
from tracecompile.self_check.results import relative_error
from tracecompile.self_check.verdict import decisive, require_near, require_same_at
from tracecompile.units import one_by_one

MOST_STEPS = 40
"""Steps of the example over which values are compared."""
CHUNK, CHUNKED = 4, 11
"""Steps that are taken together, and how many there are of them: some are left over."""
ATTEMPTS, ROUNDING, UNITS = 3, 1e-3, 4
"""Runs of steps that are taken together, and how far the nearest may be from the model: a share of the norm, or so many
units of the coarsest type, in which a sum of a few steps is no better than that whatever its order."""
LONGER = (23, 11)
"""Numbers of steps that are tried until the model takes one: more than any short trace has."""
SHORTER = (3, 2, 1)
SHORT = (5, 11)
"""Numbers of steps between these, for what need not be seen over many."""
BATCHES = (5, 3)
STEP_CALLS, CALLS = 3, 23
"""Calls of a model of one step, recorded and not: what it does from the fifth or the twentieth on is seen."""


class Sizes:
    """Compares both at other numbers of steps and samples."""

    def __init__(self, pair: Pair, example: Arguments) -> None:
        program = pair.program
        self.pair, self.program, self.example = pair, program, example
        source = time_source(program, *example)
        self.varied = Varied(source, program.explicit_states)
        self.steps = example_steps(source, *example)
        self.free = self.steps > 0 and program.length is None and not program.length_bound
        self.axes = batch_axes(program, source, *example)
        first = first_tensor(*example)
        self.samples = first.shape[self.axes[0]] if first is not None and self.axes else 0
        self.refused: dict[str, str] = {}
        self.accepted: set[str] = set()
        self.rounded: list[str] = []
        self.silence: list[str] = []
        self.memory: tuple[str, ...] = ()
        self.lengths = {self.steps}
        self.batch_axes: set[int] = set()
        """Axes along which both were compared at another size."""

    def compare(self, memory: bool = True) -> None:
        """Compares all sizes, and the memory of two of them where it is asked for.

        Raises:
            ConversionError: The converted module is not the model there; names the line whose value was frozen.
        """
        self.compare_lengths()
        self.compare_batches()
        self.compare_chunks()
        if memory:
            lengths = {*self.lengths, *SHORT} if len(self.lengths) > 1 else set()
            self.memory = require_flat_memory(self.pair, self.example, self.varied, lengths)
        self.watch_spikes()

    def compare_lengths(self) -> None:
        """Compares a longer and a shorter sequence, where the model lets an input say how long it is.

        A program of one number of steps is captured anew for inputs of another length, whatever that means to it.
        """
        if not self.free:
            return
        longer = (*(steps for steps in LONGER if steps != self.steps), self.steps + 1)
        shorter = (*(steps for steps in SHORTER if steps < self.steps), self.steps - 1)
        self.first_that_runs((Size(steps=steps) for steps in longer), learning=False)
        self.first_that_runs(Size(steps=steps) for steps in shorter if steps > 0)

    def compare_batches(self) -> None:
        """Compares other numbers of samples; a model of one step over many calls."""
        if self.program.kind == "step":
            self.runs(Size(), learning=False)
        other = next(batch for batch in BATCHES if batch != self.samples)
        for batch in (other, 1):
            if batch != self.samples:
                self.first_that_runs(Size(self.few_steps(), batch, axis) for axis in self.axes)

    def compare_chunks(self) -> None:
        """Compares steps that are taken together, where the backend will do so, up to rounding.

        A spike whose membrane is within rounding of its threshold may differ, and all that follows from it, but not
        where products are added up in one order.
        """
        settings = self.program.settings
        together = settings.backend != "eager" or (settings.chunk or 1) > 1
        if not together or one_by_one(self.program.units) or rule_of(settings).through_time:
            return
        allowed = max([ROUNDING, *(UNITS * torch.finfo(each).eps for each in dtypes_of(self.program))])
        errors = []
        for seed in range(ATTEMPTS):
            try:
                calls = self.calls(Size(steps=CHUNKED if self.free else None), 1, seed)
                run = self.pair.run(calls, chunk=CHUNK, how=Adding(seed > 0))
            except ModelRefuses:
                return
            errors.append(relative_error(run.expected, run.found) if run.fault is None else float("inf"))
            if errors[-1] <= allowed:
                return
        require_near(self.pair, run, CHUNK)

    def watch_spikes(self) -> None:
        """Counts the spikes over the example, as it is."""
        if not rule_of(self.program.settings).records or self.program.explicit_states:
            return
        converted = self.pair.rewound()
        assert converted.executor is not None
        spikes = Spikes(converted.executor.program)
        converted.executor.observer = spikes.add
        calls = [shortened(self.program, *self.example, MOST_STEPS)] * (1 if self.program.kind == "sequence" else CALLS)
        with generators_kept(), undisturbed(learning=True):
            self.pair.call(converted, calls)
        self.silence = spikes.notes()

    def few_steps(self) -> int | None:
        """Returns the number of steps to cut a long example to."""
        return SHORT[-1] if self.free and self.steps > SHORT[-1] else None

    def first_that_runs(self, sizes: Iterable[Size], learning: bool = True) -> None:
        """Compares both at the first of some sizes that the model takes."""
        for size in sizes:
            if self.runs(size, learning):
                return

    def runs(self, size: Size, learning: bool = True) -> bool:
        """Compares both at one size; False where the model refuses it."""
        calls = self.calls(size, STEP_CALLS if learning else CALLS)
        try:
            run = decisive(self.pair, calls, learning)
        except ModelRefuses as refusal:
            self.refused.setdefault(size.words(), str(refusal))
            return False
        if self.widened(size, run):
            self.refused.setdefault(size.words(), "it answers as many as in the example")
            return False
        require_same_at(self.pair, run, size, self.steps, calls, self.example)
        if run.adding:
            self.rounded.append(size.words())
        self.accepted.add(size.words())
        if size.batch is not None and size.axis is not None:
            self.batch_axes.add(size.axis)
        if size.steps is not None and size.batch is None:
            self.lengths.add(size.steps)
        return True

    def widened(self, size: Size, run: Run) -> bool:
        """Tells whether the model broadcasts one sample to states whose number of samples its own code fixes."""
        if size.batch != 1 or run.fault is not None or shapes(run.expected) == shapes(run.found):
            return False
        return shapes(run.expected) == shapes(self.pair.run(self.calls(replace(size, batch=None), STEP_CALLS)).expected)

    def calls(self, size: Size, count: int, seed: int = 0) -> list[Arguments]:
        """Makes the calls of one run: one for a whole sequence, else one a step, each of other numbers."""
        count = 1 if self.program.kind == "sequence" else count
        return [self.varied.make(*self.example, size, seed + number) for number in range(count)]

    def notes(self) -> tuple[str, ...]:
        """Says which sizes the model itself does not run with, and where values are its own up to rounding."""
        refused = [
            f"The model itself does not run with {words} ({why}), so its converted form was not compared there."
            for words, why in self.refused.items()
            if words not in self.accepted
        ]
        how = "all products added up in one order" if self.program.stepwise else "every operand in memory of its own"
        rounded = [
            f"Values differ from the model's by rounding alone ({', '.join(self.rounded)}): with {how} both are the "
            "same, bit for bit."
        ]
        return (*self.silence, *self.memory, *refused, *(rounded if self.rounded else []))


def shapes(leaves: Sequence[Any]) -> list[Any]:
    """Returns the shapes of the tensors among the leaves of a result."""
    return [leaf.shape for leaf in leaves if isinstance(leaf, Tensor)]


def time_source(program: StepProgram, args: tuple[Any, ...], kwargs: dict[str, Any]) -> TimeSource:
    """Returns what may say how many steps there are, for a program of a fixed number of steps as well."""
    if program.length is None or program.length_bound:
        return TimeSource(*program.time)
    first = first_tensor(args, kwargs)
    return TimeSource(
        next((k for k, n in enumerate(first.shape) if n == program.length), None) if first is not None else None
    )


def example_steps(source: TimeSource, args: tuple[Any, ...], kwargs: dict[str, Any]) -> int:
    """Returns the number of time steps of an example; 0 where nothing in it says so."""
    first = first_tensor(args, kwargs)
    if source.number is not None:
        return int(pytree.tree_leaves((args, kwargs))[source.number])
    return int(first.shape[source.axis]) if first is not None and source.axis is not None else 0


def shortened(program: StepProgram, args: tuple[Any, ...], kwargs: dict[str, Any], most: int) -> Arguments:
    """Cuts the example of a sequence model to a few steps."""
    if program.length_bound or example_steps(TimeSource(*program.time), args, kwargs) <= most:
        return args, kwargs
    return resized(args, kwargs, TimeSource(*program.time), most)
