"""Inputs of single steps that want a gradient: what an encoder in front of a net of one step has made, say.

A sequence is an input of the one backward function of its window. The steps of a stream come after that function was
made, so autograd does not know of them there: the window hands each its gradient itself.
"""

from __future__ import annotations

from collections.abc import Callable, Mapping

import torch
from torch import Tensor


class GivenInputs:
    """The inputs of the steps of one window that require a gradient."""

    def __init__(self) -> None:
        """Holds none yet."""
        self._steps: list[tuple[int, dict[str, Tensor]]] = []
        with torch.enable_grad():
            self.end = torch.zeros((), requires_grad=True).clone()
        """An input of the backward function, which autograd goes on to only where it goes wherever it can."""

    @property
    def names(self) -> set[str]:
        """Placeholders of those that there are."""
        return {name for _, inputs in self._steps for name in inputs}

    def take(self, step: int, inputs: Mapping[str, Tensor]) -> None:
        """Keeps what requires a gradient among the inputs of a step.

        Args:
            step: Its number within the window.
            inputs: By placeholder, with their graph.
        """
        wanted = {name: value for name, value in inputs.items() if value.requires_grad}
        if wanted:
            self._steps.append((step, wanted))

    def pass_on(self, found: Callable[[str, int], Tensor | None]) -> None:
        """Runs backward from every input that was kept.

        Args:
            found: Returns the gradient of a placeholder's value in a step.

        Raises:
            RuntimeError: ``torch.autograd.grad`` asks for gradients of chosen tensors, and cannot be given these.
        """
        values, gradients = [], []
        for step, inputs in self._steps:
            for name, value in inputs.items():
                gradient = found(name, step)
                if gradient is not None:
                    values.append(value)
                    gradients.append(gradient.sum_to_size(value.shape).to(value.dtype))
        if not values:
            return
        assert self.end.grad_fn is not None
        if not torch._C._will_engine_execute_node(self.end.grad_fn):
            raise RuntimeError(
                "The inputs of the steps require gradients, which torch.autograd.grad and backward(inputs=...) cannot "
                "reach through a net of one step. Call backward() without inputs, or detach what you hand in."
            )
        with torch.enable_grad():
            torch.autograd.backward(values, gradients, retain_graph=True)
