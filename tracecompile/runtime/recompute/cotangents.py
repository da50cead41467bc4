"""What a loss answers to the values of a sequence: cotangents, handed from each piece to the one before it."""

from __future__ import annotations

import itertools
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import Any

import torch
from torch import Tensor

from tracecompile.analysis.differentiable import differentiable
from tracecompile.program import StepProgram
from tracecompile.runtime.twins import Twins

Pair = tuple[Tensor, Tensor]
"""A value and what the loss answers to it."""


@dataclass(frozen=True)
class Leaves:
    """What one piece begins with and reads: leaves of its graph, where a gradient is wanted.

    Attributes:
        states: Before the piece.
        inputs: Of its steps, by sequence: each step by itself, or all of them in one where they are computed together.
    """

    states: list[Tensor]
    inputs: list[list[Tensor]]


class Cotangents:
    """One backward pass over a sequence.

    Attributes:
        outputs: On what was collected.
        of_steps: On (output or state, step), counted from 0: where single steps were given to the caller.
        states: On the states after the piece that comes next.
        statics, invariants: As leaves of every piece's graph.
        parameters: Stand-ins for the parameters of modules in the step, likewise: a hook on a parameter must see its
            whole gradient once, and not that of every piece.
        twins: Of these modules, which hold them.
    """

    def __init__(
        self,
        program: StepProgram,
        axes: Sequence[int],
        steps: int,
        shared: tuple[Mapping[str, Any], Sequence[Any], Sequence[Tensor]],
        wanted: Sequence[bool],
        together: bool = False,
    ) -> None:
        """Has received nothing yet.

        Args:
            program: The program.
            axes: Time axis of every sequence of inputs.
            steps: Number of time steps.
            shared: What every step reads: static values, values of the call, parameters.
            wanted: Whether each sequence of inputs wants a gradient.
            together: Whether the steps of a piece are computed together.
        """
        self.together = together
        self.program, self.axes, self.steps, self.wanted = program, tuple(axes), steps, wanted
        statics, invariants, parameters = shared
        self.statics = {name: _leaf(value) for name, value in statics.items()}
        self.invariants = [_leaf(value) for value in invariants]
        self.parameters = {parameter: parameter.detach().requires_grad_() for parameter in parameters}
        self.twins = Twins(self.parameters)
        self._owned = list(dict.fromkeys([*parameters, *(p for p in program.root.parameters() if p.requires_grad)]))
        self._shared = [*self.statics.values(), *self.invariants, *self.parameters.values()]
        self._learned = [value for value in self._shared if isinstance(value, Tensor) and value.requires_grad]
        self._found: dict[Tensor, Tensor] = {}
        self._inputs: list[Tensor | None] = [None for _ in wanted]
        self.outputs: list[Tensor | None] = [None for _ in program.outputs]
        self.states: list[Tensor | None] = [None for _ in program.carries]
        self.of_steps: Mapping[tuple[int, int], Tensor] = {}

    def take_place_of(self, inputs: Sequence[Tensor], own: Sequence[bool]) -> None:
        """Lets what is found on the inputs be written over them, a piece as soon as it was taken back.

        Args:
            inputs: Whole sequences.
            own: Of each whether nobody else reads it.
        """
        for index, (value, may_write) in enumerate(zip(inputs, own, strict=False)):
            if may_write and self.wanted[index]:
                self._inputs[index] = value

    def leaves(self, states: Sequence[Tensor], inputs: Sequence[Sequence[Tensor]]) -> Leaves:
        """Returns the leaves of a piece, see ``Leaves``; every state is one that can be."""
        moving = zip(states, self.program.carries, strict=True)
        learns = [(state.detach(), differentiable(state) and not carry.statistic) for state, carry in moving]
        return Leaves(
            [state.requires_grad_(wanted) for state, wanted in learns],
            [
                [value.detach().requires_grad_(wanted) for value in values]
                for values, wanted in zip(inputs, self.wanted, strict=True)
            ],
        )

    def pull(
        self, leaves: Leaves, made: Sequence[tuple[Sequence[Tensor], Sequence[Tensor]]], begin: int, end: int
    ) -> bool:
        """Takes a piece back; tells whether all of its gradient has come to the leaves.

        A piece some of whose gradient leads past them, to the parameters themselves, is left as it is.

        Args:
            leaves: What it began with.
            made: (outputs, states) of every step; where they were computed together once for all of them, with outputs
                of (steps, *shape) each.
            begin, end: Its first step, and the one after its last.
        """
        pairs = self._on_collected([outputs for outputs, _ in made], begin, end)
        pairs += self._on_steps(made, begin)
        last = zip(made[-1][1], self.states, strict=True)
        pairs += [(state, signal) for state, signal in last if signal is not None]
        pairs = [(value, signal.to(value.dtype)) for value, signal in pairs if value.requires_grad]
        begins = list(itertools.chain(leaves.states, *leaves.inputs))
        sources = [value for value in begins if value.requires_grad]
        sources += self._learned
        found: Sequence[Tensor | None] = [None] * len(sources)
        if pairs:
            values, signals = zip(*pairs, strict=True)
            found = torch.autograd.grad(values, [*sources, *self._owned], signals, allow_unused=True)
        if any(gradient is not None for gradient in found[len(sources) :]):
            return False
        given = iter(found)
        self.states = [next(given) if state.requires_grad else None for state in leaves.states]
        for index, rows in enumerate(leaves.inputs):
            if self.wanted[index]:
                self._take_input(index, [next(given) for _ in rows], begin, end)
        for value, gradient in zip(self._learned, given, strict=False):
            if gradient is not None:
                self._add(value, gradient)
        return True

    def _add(self, value: Tensor, gradient: Tensor) -> None:
        if value in self._found:
            self._found[value] += gradient
        else:
            # What autograd returns may be somebody else's memory.
            self._found[value] = gradient.clone(memory_format=torch.contiguous_format)

    def _on_collected(self, made: Sequence[Sequence[Tensor]], begin: int, end: int) -> list[Pair]:
        found: list[Pair] = []
        for index, (signal, output) in enumerate(zip(self.outputs, self.program.outputs, strict=True)):
            if signal is None:
                continue
            if output.collect == "last":
                value = made[-1][index]
                found += [(value[-1] if self.together else value, signal)] if end == self.steps else []
                continue
            chosen = range(begin, end) if output.chosen is None else set(output.chosen.of(self.steps))
            if self.together and output.chosen is None:
                rows = made[0][index]
                found.append((rows, signal[begin:end] if output.collect == "stack" else signal.expand_as(rows)))
                continue
            values = made[0][index] if self.together else [outputs[index] for outputs in made]
            signals = signal[begin:end] if output.collect == "stack" else [signal] * (end - begin)
            steps = zip(range(begin, end), values, signals, strict=True)
            found += [(value, each) for step, value, each in steps if step in chosen]
        return found

    def _on_steps(self, made: Sequence[tuple[Sequence[Tensor], Sequence[Tensor]]], begin: int) -> list[Pair]:
        return [
            (value, self.of_steps[index, step])
            for step, (outputs, states) in enumerate(made, begin)
            for index, value in enumerate((*outputs, *states))
            if (index, step) in self.of_steps
        ]

    def _take_input(self, index: int, found: Sequence[Tensor | None], begin: int, end: int) -> None:
        axis = self.axes[index]
        for step, gradient in enumerate(found, begin):
            total = self._inputs[index]
            if total is None:
                if gradient is None:
                    continue
                shape = list(gradient.shape)
                shape[axis:] = [self.steps, *shape[axis + 1 if self.together else axis :]]
                total = self._inputs[index] = gradient.new_zeros(shape)
            part = total.narrow(axis, begin, end - begin) if self.together else total.select(axis, step)
            part.zero_() if gradient is None else part.copy_(gradient)

    def gradients(self) -> list[Tensor | None]:
        """Returns those of (*inputs, *initial states, *statics, *invariants, *parameters); None where there is none."""
        shared = [self._found.get(value) if isinstance(value, Tensor) else None for value in self._shared]
        return [*self._inputs, *self.states, *shared]


def _leaf(value: Any) -> Any:
    return value.detach().requires_grad_(value.requires_grad) if isinstance(value, Tensor) else value
