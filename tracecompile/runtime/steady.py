"""Steps of a stream that are like those before: what was found out of those is not found out again.

To bind a call to what runs it takes longer than a compiled step. Of a stream nearly all of it comes out the same at
every step: a model that is as it was, and tensors of the shapes that were there.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any

from torch import Tensor, nn

from tracecompile.arguments import Doubt, checked
from tracecompile.capture.tracing.step_mode import follow_modes
from tracecompile.compiled import Compiled
from tracecompile.program import StepProgram
from tracecompile.runtime.standing import Standing
from tracecompile.runtime.streams import Step, kinds


@dataclass(frozen=True)
class Steady:
    """What was found out of some steps that were bound to a program.

    Attributes:
        compiled: What ran them.
        modes: Every module with its training flag.
        steps: How many they were.
        kinds: What each of them took was like.
        order: For every input of the program its place among what a step takes.
        names: Of the inputs.
    """

    compiled: Compiled
    modes: list[tuple[nn.Module, bool]]
    steps: int
    kinds: list[Any]
    order: tuple[int, ...]
    names: tuple[str, ...]

    @classmethod
    def after(
        cls, compiled: Compiled, steps: Sequence[Step], sequences: Sequence[Tensor], leaves: Sequence[Any]
    ) -> Steady | None:
        """Returns what was found out; None where the program makes more of its arguments than slices.

        Args:
            compiled: What the steps were bound to.
            steps: These.
            sequences: Made of them.
            leaves: Of the call that was made of those.
        """
        program = compiled.program
        places = [place for leaf in leaves for place, value in enumerate(sequences) if value is leaf]
        if program.invariants or program.prologue_again or not len(places) == len(leaves) == len(program.inputs):
            return None
        names = tuple(f"The input {name}" for name in compiled.arguments.names)
        modes = [(module, module.training) for module in program.root.modules()]
        return cls(compiled, modes, len(steps), kinds(steps[0]), tuple(places), names)

    def serves(self, program: StepProgram, standing: Standing | None, steps: Sequence[Step]) -> bool:
        """Tells whether some steps, and the model, are like those."""
        return (
            len(steps) == self.steps
            and kinds(steps[0]) == self.kinds
            and program is self.compiled.program
            and (standing is None or standing.holds())
            and all(module.training is mode for module, mode in self.modes)
        )

    def laid_out(self, values: Sequence[Tensor]) -> tuple[tuple[Tensor, ...], list[Doubt]]:
        """Returns what steps take in the order of the program's inputs, and of which of it a device has still to speak.

        Raises:
            InvalidInput: It is not finite.
        """
        follow_modes(self.compiled.program.leaves.values())
        found = tuple(values[place] for place in self.order)
        return found, [doubt for name, value in zip(self.names, found, strict=True) for doubt in checked(name, value)]
