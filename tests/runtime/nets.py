"""Small networks that the tests of training share: over a sequence, and one step per call."""

from __future__ import annotations

import torch
from torch import Tensor, nn

import tracecompile

INPUTS, HIDDEN, OUTPUTS = 5, 7, 3


class Fire(torch.autograd.Function):
    """1 where u > 0; in backward a fast sigmoid."""

    @staticmethod
    def forward(ctx, u: Tensor) -> Tensor:  # type: ignore[no-untyped-def]
        ctx.save_for_backward(u)
        return (u > 0).to(u.dtype)

    @staticmethod
    def backward(ctx, g: Tensor) -> Tensor:  # type: ignore[no-untyped-def]
        (u,) = ctx.saved_tensors
        return g / (1 + 4 * u.abs()) ** 2


class Whole(nn.Module):
    """[T, B, 5] in, [T, B, 3] out: a recurrent layer and a leaky readout."""

    def __init__(self) -> None:
        super().__init__()
        self.below, self.lateral, self.above = (
            nn.Linear(INPUTS, HIDDEN),
            nn.Linear(HIDDEN, HIDDEN, bias=False),
            nn.Linear(HIDDEN, OUTPUTS),
        )

    def forward(self, x: Tensor) -> Tensor:
        v = z = x.new_zeros(x.shape[1], HIDDEN)
        y, ys = x.new_zeros(x.shape[1], OUTPUTS), []
        for x_t in x:
            v = 0.9 * v + 2 * self.below(x_t) + self.lateral(z) - z
            z = Fire.apply(v - 0.5)
            y = 0.8 * y + self.above(z)
            ys.append(y)
        return torch.stack(ys)


class Step(nn.Module):
    """[B, 5] in, [B, 3] out, one step per call; its states are attributes until ``reset``."""

    def __init__(self) -> None:
        super().__init__()
        self.below, self.above = nn.Linear(INPUTS, HIDDEN), nn.Linear(HIDDEN, OUTPUTS)
        self.v: Tensor | None = None
        self.y: Tensor | None = None

    def reset(self) -> None:
        self.v = self.y = None

    def forward(self, x: Tensor) -> Tensor:
        if self.v is None or self.y is None:
            self.v, self.y = x.new_zeros(x.shape[0], HIDDEN), x.new_zeros(x.shape[0], OUTPUTS)
        v = 0.9 * self.v + 2 * self.below(x)
        z = Fire.apply(v - 0.5)
        self.v = v - 0.5 * z
        self.y = 0.8 * self.y + self.above(z)
        return self.y


def twins(kind: type[nn.Module]) -> tuple[nn.Module, nn.Module]:
    """Returns two models with equal parameters, in float64."""
    made = []
    for _ in range(2):
        torch.manual_seed(2)
        made.append(kind().double())
    return made[0], made[1]


def events(steps: int, batch: int) -> Tensor:
    """Returns spikes as an input."""
    return (torch.rand(steps, batch, INPUTS) < 0.5).double()


def gradients(model: nn.Module) -> dict[str, Tensor]:
    """Returns the gradients of a model that was trained, and clears them."""
    found = {name: p.grad.clone() for name, p in model.named_parameters() if p.grad is not None}
    model.zero_grad(set_to_none=True)
    return found


def assert_same(found: dict[str, Tensor], wanted: dict[str, Tensor], tolerance: float = 1e-9) -> None:
    """Requires the same parameters to have gradients, and these to be equal up to rounding."""
    assert found.keys() == wanted.keys()
    for name, value in wanted.items():
        assert value.norm() > 0, name
        assert float((found[name] - value).norm() / value.norm()) <= tolerance, name


def ran(net: tracecompile.TracedModule) -> tuple[str, int]:
    """Returns what ran the last call of a net, and how many steps at once."""
    execution = net.report.execution
    assert execution is not None
    return execution.backend, execution.chunk
