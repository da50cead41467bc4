"""Several steps of a stream at once: pieces that end where a bin does, by what runs the pieces of a sequence."""

from __future__ import annotations

import torch
from torch import Tensor

from tracecompile.errors import InvalidInput
from tracecompile.program import StepProgram
from tracecompile.rules.written import in_sequence
from tracecompile.runtime.engine.choice import choose_ahead, one_by_one
from tracecompile.runtime.engine.compiled import RECURRENT_PIECE
from tracecompile.runtime.executor import Executor
from tracecompile.runtime.outside import unseen
from tracecompile.runtime.piece import run_piece
from tracecompile.runtime.recompute.pieces import draws_in_steps
from tracecompile.runtime.recompute.steps import KeptSteps
from tracecompile.runtime.rerun import Prepared
from tracecompile.runtime.window import Window


def refuse_ahead(program: StepProgram) -> None:
    """Refuses to look ahead in streams of a model whose steps cannot be computed together.

    Raises:
        InvalidInput: The program is one of them.
    """
    if one_by_one(program):
        raise InvalidInput(
            "A stream of this model cannot look ahead: its steps are taken one by one, since each draws random "
            "numbers, all of its layers take turns, or autograd goes through them.",
            "Stream without lookahead.",
        )
    if program.settings.rule == "exact" and draws_in_steps(program):
        raise InvalidInput(
            'A stream of this model cannot look ahead under rule="exact": its steps draw random numbers, which '
            "backward draws again step by step.",
            "Stream without lookahead, or under another rule.",
        )


class Together:
    """Steps of a stream that are run together, on their way.

    Attributes:
        loop: What they are run by.
        done: How many have been run.
    """

    def __init__(
        self, executor: Executor, prepared: Prepared, window: Window | KeptSteps | None, steps: int, size: int
    ) -> None:
        """Stands before the first one.

        Args:
            executor: Of the program.
            prepared: What they start from: sequences.
            window: What they are recorded in; None where they are not trained.
            steps: How many.
            size: How many there may be at most in this stream.
        """
        program = executor.program
        self.executor, self.window, self.steps, self.done = executor, window, steps, 0
        named = zip(program.inputs, prepared.inputs, strict=True)
        self.inputs = {x.name: value.detach().movedim(x.dim, 0) for x, value in named}
        self.choice = choose_ahead(program, size, steps, self.inputs, executor.work if window is not None else None)
        executor.choice = self.choice
        self.loop, single = executor.single.loop(prepared, window), executor.single
        self._begins, single.pieces_begun = not single.pieces_begun, True
        self.engine = executor.engine(self.choice, begins=self._begins)
        self._written = [unit.step for unit in program.units if unit.step is not None]

    def piece(self) -> list[list[Tensor]]:
        """Runs the next steps, as many as are one piece; returns the outputs of each."""
        loop = self.loop
        room = self.choice.chunk if self.window is None else min(self.window.room, self.choice.chunk)
        size = min(room, self.steps - self.done)
        inputs = {name: value[self.done : self.done + size] for name, value in self.inputs.items()}
        self.done += size
        # What is left of a compiled scan would be run by scans of one step, which take longer than steps.
        fewest = RECURRENT_PIECE if self.choice.backend == "inductor" else 2
        with torch.no_grad(), unseen():
            if size < fewest or self.executor.looked_at:
                given = [[value[time] for value in inputs.values()] for time in range(size)]
                return [list(self.executor.single.recorded(loop, each)) for each in given]
            with in_sequence(self._written, begins=self._begins):
                loop.enter(size)
                made = run_piece(loop, self.engine, inputs, size)
            # Copies: an output that somebody keeps would keep those of the whole piece.
            return [[value.clone() for value in row] for row in zip(*made, strict=True)]
