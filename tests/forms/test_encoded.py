"""What is made of the input before the loop: it may draw and compare, and takes no memory beyond the call."""

from __future__ import annotations

import pytest
import torch
import torch.nn.functional as F
from support.oracle import HIDDEN, INPUTS, OUTPUTS, Program, require_right, spike
from torch import Tensor, nn


class Encoded(nn.Module):
    """Leaky neurons on a sequence that is encoded first; the classes below differ in one thing each."""

    def __init__(self) -> None:
        super().__init__()
        self.inp, self.out = nn.Linear(INPUTS, HIDDEN), nn.Linear(HIDDEN, OUTPUTS)
        self.start = nn.Linear(INPUTS, HIDDEN)

    def encode(self, x: Tensor) -> Tensor:
        return torch.relu(x) - 0.5 * torch.relu(-x)

    def initial(self, x: Tensor) -> Tensor:
        return x.new_zeros(x.shape[1], HIDDEN)

    def current(self, x_t: Tensor, x: Tensor) -> Tensor:
        return self.inp(x_t)

    def reset_by(self, v: Tensor, z: Tensor, x: Tensor) -> Tensor:
        return v - 0.5 * z

    def forward(self, x: Tensor) -> Tensor:
        x = self.encode(x)
        v, outs = self.initial(x), []
        for x_t in x:
            v = 0.8 * v + self.current(x_t, x)
            z = spike(v - 0.5)
            v = self.reset_by(v, z, x)
            outs.append(self.out(z))
        return torch.stack(outs)


class ByRate(Encoded):
    def encode(self, x: Tensor) -> Tensor:
        return (torch.rand_like(x) < torch.sigmoid(x)).to(x.dtype)


class OfTheTypeOfDropped(Encoded):
    def encode(self, x: Tensor) -> Tensor:
        return F.dropout(x, 0.2, self.training)

    def reset_by(self, v: Tensor, z: Tensor, x: Tensor) -> Tensor:
        return v * (1 - (z > 0).type_as(x))


class ZerosLikeTheEncoded(Encoded):
    def reset_by(self, v: Tensor, z: Tensor, x: Tensor) -> Tensor:
        return torch.where(z.bool(), x.new_zeros(1), v)


class ToTheEncoded(Encoded):
    def current(self, x_t: Tensor, x: Tensor) -> Tensor:
        return self.inp(x_t).to(x)


class FromTheFirstFrame(Encoded):
    def encode(self, x: Tensor) -> Tensor:
        return (x > 0.3).to(x.dtype)

    def initial(self, x: Tensor) -> Tensor:
        return torch.tanh(self.start(x[0]))


class FromTheLastFrames(Encoded):
    def initial(self, x: Tensor) -> Tensor:
        return torch.tanh(self.start(x[-1]) + self.start(x.select(0, -2)))


KINDS = (ByRate, OfTheTypeOfDropped, ZerosLikeTheEncoded, ToTheEncoded, FromTheFirstFrame, FromTheLastFrames)


@pytest.mark.parametrize("kind", KINDS)
def test_what_is_made_before_the_loop_is_not_kept(kind: type[Encoded]) -> None:
    require_right(Program(kind, trained=False))
