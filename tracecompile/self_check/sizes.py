"""Model and converted module at sizes that the capture never saw; what the model itself refuses is found out."""

from __future__ import annotations

from collections.abc import Iterable, Sequence
from dataclasses import replace
from typing import Any

from torch import Tensor
from torch.utils import _pytree as pytree

from tracecompile.capture.loops.lengths import TimeSource
from tracecompile.capture.loops.resizing import first_tensor
from tracecompile.program import StepProgram
from tracecompile.self_check.inputs import Arguments, Size, Varied, batch_axes
from tracecompile.self_check.pair import ModelRefuses, Pair, Run
from tracecompile.self_check.verdict import require_same

LONGER = (23, 11)
"""Numbers of steps that are tried until the model takes one: more than any short trace has."""
SHORTER = (3, 2, 1)
BATCHES = (3, 5)
STEP_CALLS, CALLS = 3, 23
"""Calls of a model of one step, recorded and not: what it does from the fifth or the twentieth on is seen."""


class Sizes:
    """Compares both at other numbers of steps and samples."""

    def __init__(self, pair: Pair, example: Arguments) -> None:
        program = pair.program
        self.pair, self.program, self.example = pair, program, example
        self.varied = Varied(TimeSource(*program.time), program.explicit_states)
        self.steps = example_steps(program, *example)
        self.axes = batch_axes(program, *example)
        first = first_tensor(*example)
        self.samples = first.shape[self.axes[0]] if first is not None and self.axes else 0
        self.refused: dict[str, str] = {}
        self.accepted: set[str] = set()

    def compare(self) -> None:
        """Compares all sizes.

        Raises:
            ConversionError: The converted module is not the model there; names the line whose value was frozen.
        """
        self.compare_lengths()
        self.compare_batches()

    def compare_lengths(self) -> None:
        """Compares a longer and a shorter sequence, where the model lets an input say how long it is."""
        if not self.steps or self.program.length is not None or self.program.length_bound:
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

    def few_steps(self) -> int | None:
        """Returns the number of steps to cut a long example to."""
        fixed = self.program.length is not None or self.program.length_bound
        return LONGER[0] if not fixed and self.steps > LONGER[0] else None

    def first_that_runs(self, sizes: Iterable[Size], learning: bool = True) -> None:
        """Compares both at the first of some sizes that the model takes."""
        for size in sizes:
            if self.runs(size, learning):
                return

    def runs(self, size: Size, learning: bool = True) -> bool:
        """Compares both at one size; False where the model refuses it."""
        calls = self.calls(size, STEP_CALLS if learning else CALLS)
        try:
            run = self.pair.run(calls, learning)
        except ModelRefuses as refusal:
            self.refused.setdefault(size.words(), str(refusal))
            return False
        if self.widened(size, run):
            self.refused.setdefault(size.words(), "it answers as many as in the example")
            return False
        require_same(self.pair, run, f"With {size.words()}", calls, self.example)
        self.accepted.add(size.words())
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
        """Says which sizes the model itself does not run with."""
        return tuple(
            f"The model itself does not run with {words} ({why}), so its converted form was not compared there."
            for words, why in self.refused.items()
            if words not in self.accepted
        )


def shapes(leaves: Sequence[Any]) -> list[Any]:
    """Returns the shapes of the tensors among the leaves of a result."""
    return [leaf.shape for leaf in leaves if isinstance(leaf, Tensor)]


def example_steps(program: StepProgram, args: tuple[Any, ...], kwargs: dict[str, Any]) -> int:
    """Returns the number of time steps of a sequence model's example; 0 where it does not say."""
    source, first = TimeSource(*program.time), first_tensor(args, kwargs)
    if source.number is not None:
        return int(pytree.tree_leaves((args, kwargs))[source.number])
    return int(first.shape[source.axis]) if first is not None and source.axis is not None else 0
