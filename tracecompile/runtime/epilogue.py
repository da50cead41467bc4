"""What is computed after the loop of the values of all steps, and computed again for backward.

A spread over time, a softmax over time, a product: their derivatives need the values of all steps once more. Autograd
would keep these for as long as the user keeps the loss. Here nothing is kept; backward runs the sequence forward once
more, from the inputs that the caller holds anyway, and what follows it with a graph.
"""

from __future__ import annotations

from collections.abc import Collection, Sequence
from typing import Any

import torch
from torch import Tensor, fx

from tracecompile.program import StepProgram
from tracecompile.runtime.backward.once import applied, first_order
from tracecompile.runtime.replay import drawn_again, random_states
from tracecompile.runtime.rerun import Rerun


class Again:
    """One epilogue that is to be run twice.

    Its operands are attributes, what was collected, last states and invariants; after them the parameters of its
    modules, for their gradients alone.
    """

    def __init__(
        self,
        epilogue: fx.GraphModule,
        program: StepProgram,
        rerun: Rerun,
        steps: int,
        first: int,
        anew: Collection[int],
    ) -> None:
        """Remembers the circumstances.

        Args:
            epilogue: Maps its operands to the leaves of the result.
            program: Whose epilogue it is.
            rerun: Runs the sequence once more.
            steps: Number of time steps.
            first: Which of the operands is the first of what was collected.
            anew: Positions of the invariants that the prologue makes anew.
        """
        self.epilogue, self.rerun, self.steps, self.first = epilogue, rerun, steps, first
        self.parameters = list(epilogue.parameters())
        self.stacked = [place for place, output in enumerate(program.outputs, first) if output.collect == "stack"]
        before = first + len(program.outputs) + len(program.carries)
        self.anew = {before + position: position for position in anew}
        self.drawn = random_states()
        self.kept: list[Any] = []

    def run(self, operands: Sequence[Any]) -> list[Any]:
        """Returns the leaves of the result, and keeps nothing that holds all steps for their gradients."""
        _, *leaves = applied(EpilogueFunction, None, self, *operands, *self.parameters)
        return list(leaves)

    def leaves(self, given: Sequence[Any], wanted: Sequence[bool]) -> tuple[list[Any], list[Tensor]]:
        """Runs it with a graph; returns the leaves of the result, and the operands that need a gradient."""
        count = len(given) - len(self.parameters)
        operands: list[Any] = [value.detach() if isinstance(value, Tensor) else value for value in given[:count]]
        sources = [value.requires_grad_() for value, need in zip(operands, wanted, strict=False) if need]
        sources += [value for value, need in zip(self.parameters, wanted[count:], strict=True) if need]
        with torch.enable_grad():
            # Not the sources themselves: the user's code may write into what it is given.
            passed = [value.clone() if need else value for value, need in zip(operands, wanted, strict=False)]
            return list(self.epilogue(*passed)), sources

    def keep(self, given: Sequence[Any]) -> None:
        """Keeps the operands that can not be as long as the sequence."""
        long = {*self.stacked, *self.anew}
        held = [None if place in long else value for place, value in enumerate(given)]
        self.kept = [value.detach() if isinstance(value, Tensor) else value for value in held]

    def given(self) -> list[Any]:
        """Returns all operands as they were."""
        found = list(self.kept)
        values = self.rerun.collected(self.steps)
        for place in self.stacked:
            found[place] = values[place - self.first]
        invariants = self.rerun.invariants() if self.anew else ()
        for place, position in self.anew.items():
            found[place] = invariants[position]
        return found


class EpilogueFunction(torch.autograd.Function):
    """Runs an epilogue and keeps nothing that holds all steps."""

    @staticmethod
    def forward(ctx: Any, again: Again, *given: Any) -> Any:
        """Returns a root for ``first_order``, and the leaves of the result."""
        ctx.again, ctx.wanted = again, ctx.needs_input_grad[1:]
        # The graph says which leaves require a gradient, and need hold nothing for it.
        with torch.autograd.graph.saved_tensors_hooks(lambda tensor: None, lambda nothing: nothing):
            leaves, _ = again.leaves(given, ctx.wanted)
        again.keep(given)
        found = [leaf.detach() if isinstance(leaf, Tensor) else leaf for leaf in leaves]
        constant = [
            made
            for made, leaf in zip(found, leaves, strict=True)
            if isinstance(leaf, Tensor) and not leaf.requires_grad
        ]
        ctx.mark_non_differentiable(*constant)
        ctx.set_materialize_grads(False)
        root = torch.zeros(())
        ctx.save_for_backward(root)
        return root, *found

    @staticmethod
    def backward(ctx: Any, from_root: None, *signals: Tensor | None) -> Any:
        """Returns the gradients of the operands."""
        (root,) = ctx.saved_tensors
        with torch.no_grad():
            found = EpilogueFunction.pulled(ctx.again, ctx.wanted, signals)
        return None, *first_order(root, found)

    @staticmethod
    def pulled(again: Again, wanted: Sequence[bool], signals: Sequence[Tensor | None]) -> list[Tensor | None]:
        """Runs the sequence once more, and pulls learning signals on the leaves of the result to the operands."""
        with again.rerun.executor.turn:
            given = again.given()
        with again.rerun.circumstances(), drawn_again(again.drawn):
            leaves, sources = again.leaves(given, wanted)
        pairs = [
            (leaf, signal)
            for leaf, signal in zip(leaves, signals, strict=True)
            if signal is not None and isinstance(leaf, Tensor) and leaf.requires_grad
        ]
        outputs, pulls = [leaf for leaf, _ in pairs], [signal for _, signal in pairs]
        none: list[Tensor | None] = [None] * len(sources)
        found = iter(torch.autograd.grad(outputs, sources, pulls, allow_unused=True) if outputs else none)
        return [next(found) if need else None for need in wanted]
