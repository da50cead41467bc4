"""A state that is zeros like a current that is drawn: the current of the first step is drawn once, not twice."""

from __future__ import annotations

import pytest
import torch
from support.oracle import HIDDEN, INPUTS, OUTPUTS, Program, require_right, spike
from torch import Tensor, nn


class Zeros(nn.Module):
    """Leaky neurons that start as zeros like their first current, on spikes drawn at every step."""

    def __init__(self, steps: int = 0) -> None:
        super().__init__()
        self.steps = steps
        self.inp, self.out = nn.Linear(INPUTS, HIDDEN), nn.Linear(HIDDEN, OUTPUTS)

    def drawn(self, x_t: Tensor) -> Tensor:
        return (torch.rand_like(x_t) < torch.sigmoid(x_t)).to(x_t)

    def forward(self, x: Tensor) -> Tensor:
        v, out = None, 0.0
        for x_t in x if self.steps == 0 else [x[0]] * self.steps:
            current = self.inp(self.drawn(x_t))
            if v is None:
                v = torch.zeros_like(current)
            v = 0.9 * v + current
            z = spike(v - 0.5)
            v = v - 0.5 * z
            out = out + self.out(z)
        return out


class ByChance(Zeros):
    def drawn(self, x_t: Tensor) -> Tensor:
        return torch.bernoulli(torch.sigmoid(x_t))


class OfASize(Zeros):
    def drawn(self, x_t: Tensor) -> Tensor:
        return (torch.rand(x_t.shape[0], INPUTS, dtype=x_t.dtype) < torch.sigmoid(x_t)).to(x_t)


class Normal(Zeros):
    def drawn(self, x_t: Tensor) -> Tensor:
        return x_t + torch.normal(0.0, 0.5, size=x_t.shape, dtype=x_t.dtype)


class FilledInPlace(Zeros):
    def drawn(self, x_t: Tensor) -> Tensor:
        return x_t + 0.5 * torch.empty_like(x_t).uniform_(-1.0, 1.0)


class TwiceAStep(Zeros):
    def drawn(self, x_t: Tensor) -> Tensor:
        return torch.bernoulli(torch.sigmoid(x_t)) * torch.rand(INPUTS, dtype=x_t.dtype)


@pytest.mark.parametrize("kind", [Zeros, ByChance, OfASize, Normal, FilledInPlace, TwiceAStep])
def test_what_gives_a_shape_is_not_drawn_again(kind: type[Zeros]) -> None:
    require_right(Program(kind, trained=False))


def test_one_image_shown_for_a_fixed_number_of_steps() -> None:
    require_right(Program(Zeros, fixed_steps=True, trained=False))
