"""Derivatives of a neuron's step that is kept whole: products of ones with the Jacobian of the library's own step."""

from __future__ import annotations

import torch
from torch import Tensor

from tracecompile.neuron_step import OpaqueStep
from tracecompile.rules.written import Slopes


class StepWithSlopes(Slopes):
    """Runs a step once and returns its results, then the derivative of each of them by each chosen argument.

    The step acts on every neuron by itself, so one product of ones with the Jacobian of one result is that result's
    derivative for all neurons.
    """

    def __init__(self, step: OpaqueStep, wanted: tuple[int, ...]) -> None:
        """Keeps the step; ``wanted`` are the positions of the arguments to differentiate by."""
        super().__init__()
        self.step = step
        self.wanted = wanted

    def by_autograd(self, *given: Tensor) -> tuple[Tensor, ...]:
        """Returns (*results, *derivatives of the first result, *of the second, ...), without a graph."""
        shape = torch.broadcast_shapes(*(value.shape for value in given))
        with torch.enable_grad():
            leaves = {position: given[position].detach().expand(shape).requires_grad_() for position in self.wanted}
            results = self.step(*(leaves.get(position, value) for position, value in enumerate(given)))
            slopes = [slope for result in results for slope in _slopes(result, list(leaves.values()))]
        if any(given[position].shape != shape for position in self.wanted):
            # A parameter that all neurons share was given to each of them; the values are those of the shared one.
            with torch.no_grad():
                results = self.step(*given)
        return (*(result.detach() for result in results), *slopes)


def _slopes(result: Tensor, leaves: list[Tensor]) -> list[Tensor]:
    if not result.requires_grad:
        return [torch.zeros_like(leaf) for leaf in leaves]
    found = torch.autograd.grad(result, leaves, torch.ones_like(result), retain_graph=True, allow_unused=True)
    return [torch.zeros_like(leaf) if slope is None else slope for slope, leaf in zip(found, leaves, strict=True)]
