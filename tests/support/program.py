"""A model, and how its user drives it."""

from __future__ import annotations

import inspect
import random
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy
import torch
from torch import Tensor, nn

INPUTS, HIDDEN, OUTPUTS = 6, 10, 4
EXACT, SINGLE, HALF = 1e-9, 1e-5, 1e-3
"""Relative errors of gradients that are rounding, in float64, in float32, and where a step rounds to float16."""


class FastSigmoid(torch.autograd.Function):
    """A step forward, a fast sigmoid backward."""

    @staticmethod
    def forward(ctx: Any, v: Tensor) -> Tensor:
        ctx.save_for_backward(v)
        return (v > 0).to(v.dtype)

    @staticmethod
    def backward(ctx: Any, grad: Tensor) -> Tensor:
        (v,) = ctx.saved_tensors
        return grad / (1 + 5 * v.abs()) ** 2


spike = FastSigmoid.apply


def reset_if_it_can(module: nn.Module) -> None:
    """Calls the module's own ``reset``, as a converted net has one too."""
    reset = getattr(module, "reset", None)
    if callable(reset):
        reset()


def drawn_sequence(steps: int, batch: int) -> Tensor:
    """Returns an input in which neurons fire and stay silent."""
    return 2 * torch.randn(steps, batch, INPUTS)


@dataclass(frozen=True)
class Program:
    """A model and its user.

    Attributes:
        make: Builds the model, always with the same weights, since the oracle seeds. Where ``fixed_steps``, it takes
            the number of steps.
        inputs: (steps, batch) -> the input of a whole sequence, or a tuple of several. A model of one step is given
            ``inputs(...)[t]``.
        step: The model takes one time step per call.
        start: What a model of one step is given besides its input at the first step (its states), for a batch size.
        returns_state: A model of one step returns ``(output, state)``, and is given the state at the next step.
        fixed_steps: The number of steps is fixed by the model's own code: it is made and converted for each length.
        fixed_batch: The only batch size that the model takes.
        begin: What the user calls on the model, and on the net, before every sequence.
        prepare: What the user does with the model before it is converted.
        example: Steps and batch size that the model is converted from.
        runs: (steps, batch) that are compared, none of which the conversion sees.
        lengths: The two numbers of steps at which memory is measured.
        precise: The model runs in float64.
        coarse: The relative error of the coarsest type that its step rounds to on the way, ``HALF`` say.
        trained: Every parameter gets a gradient.
        fires: Neurons fire and stay silent by comparisons that torch's dispatcher sees.
        flat: Memory must not grow with the number of steps.
        statistics: Parts of the names of buffers that are compared after training.
        file: The file that a refusal must name; None for the one that defines ``make``.
    """

    make: Callable[..., nn.Module]
    inputs: Callable[[int, int], Any] = drawn_sequence
    step: bool = False
    start: Callable[[int], tuple[Any, ...]] = lambda batch: ()
    returns_state: bool = False
    fixed_steps: bool = False
    fixed_batch: int | None = None
    begin: Callable[[nn.Module], None] = reset_if_it_can
    prepare: Callable[[nn.Module], None] = lambda model: None
    example: tuple[int, int] = (6, 2)
    runs: tuple[tuple[int, int], ...] = ((3, 1), (11, 5), (23, 2))
    lengths: tuple[int, int] = (16, 64)
    precise: bool = True
    coarse: float = 0.0
    trained: bool = True
    fires: bool = True
    flat: bool = True
    statistics: tuple[str, ...] = ("running_", "num_batches")
    file: Path | None = None

    def model(self, steps: int) -> nn.Module:
        """Returns the model as its user has it when it is converted, for so many steps if it fixes them."""
        seed(0)
        made = self.make(steps) if self.fixed_steps else self.make()
        self.prepare(made)
        made.zero_grad(set_to_none=True)
        return made.train()

    def drawn(self, steps: int, batch: int) -> Any:
        """Returns the input of a whole sequence, always the same for one size."""
        seed(3)
        return self.inputs(steps, self.fixed_batch or batch)

    def arguments(self, steps: int, batch: int) -> tuple[Any, ...]:
        """Returns the example that the user hands to ``convert``."""
        given = _as_tuple(self.drawn(steps, batch))
        if not self.step:
            return given
        return (*(each[0] for each in given), *self.start(self.fixed_batch or batch))

    def drive(self, module: nn.Module, drawn: Any) -> Any:
        """Runs a sequence through the model or the net, as the user does; returns all that is returned."""
        self.begin(module)
        seed(7)  # what the model draws
        given = _as_tuple(drawn)
        if not self.step:
            return module(*given)
        state, results = self.start(given[0].shape[1]), []
        for inputs in zip(*given, strict=True):
            result = module(*inputs, *state)
            if self.returns_state:
                result, carried = result
                state = (carried,)
            results.append(result)
        return results

    def source_file(self) -> Path:
        """Returns the user's file."""
        return self.file or Path(inspect.getsourcefile(self.make) or "")

    @contextmanager
    def precision(self) -> Iterator[float]:
        """Runs a block in float64 where the model can be; yields the relative error that is rounding."""
        before = torch.get_default_dtype()
        torch.set_default_dtype(torch.float64 if self.precise else torch.float32)
        try:
            yield max(self.coarse, EXACT if self.precise else SINGLE)
        finally:
            torch.set_default_dtype(before)


def _as_tuple(drawn: Any) -> tuple[Any, ...]:
    return drawn if isinstance(drawn, tuple) else (drawn,)


def seed(number: int) -> None:
    """Seeds every generator that a model may draw from."""
    torch.manual_seed(number)
    random.seed(number)
    numpy.random.seed(number)
