"""Small models, inputs and comparisons for what stands around a net."""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

import torch
from torch import Tensor, nn

from tracecompile.nn.surrogates import arctan

INPUTS, WIDTH, OUTPUTS = 5, 8, 3
SPIKE = arctan(2.0)


class Sequence(nn.Module):
    """[T, B, 5] to [B, 3]: one layer of neurons; leak and threshold are plain numbers, the slope a surrogate's."""

    def __init__(self) -> None:
        super().__init__()
        self.enter, self.leave = nn.Linear(INPUTS, WIDTH), nn.Linear(WIDTH, OUTPUTS)
        self.leak, self.threshold = 0.9, 0.5
        self.register_buffer("gain", torch.full((WIDTH,), 2.0))

    def forward(self, x: Tensor) -> Tensor:
        v, total = x.new_zeros(x.shape[1], WIDTH), self.begin(x)
        for x_t in x:
            v = self.leak * v + self.gain * self.enter(x_t)
            z = SPIKE(v - self.threshold)
            v = v - self.threshold * z
            total = total + self.leave(z)
        return total

    def begin(self, x: Tensor) -> Tensor:
        """Returns what the outputs are added to."""
        return x.new_zeros(x.shape[1], OUTPUTS)


class Step(nn.Module):
    """[B, 5] to [B, 3], one time step; membrane and last spikes stay in attributes."""

    def __init__(self) -> None:
        super().__init__()
        self.enter, self.lateral = nn.Linear(INPUTS, WIDTH), nn.Linear(WIDTH, WIDTH, bias=False)
        self.leave = nn.Linear(WIDTH, OUTPUTS)
        self.v: Tensor | None = None
        self.z: Tensor | None = None

    def clear(self) -> None:
        self.v = self.z = None

    def forward(self, x: Tensor) -> Tensor:
        if self.v is None or self.z is None:
            self.v = self.z = x.new_zeros(x.shape[0], WIDTH)
        v = 0.85 * self.v + 2.5 * self.enter(x) + self.lateral(self.z)
        z = SPIKE(v - 0.5)
        self.v, self.z = v - 0.5 * z, z
        return self.leave(z)


def events(steps: int, batch: int) -> Tensor:
    """Spikes of half of the inputs."""
    return (torch.rand(steps, batch, INPUTS) < 0.5).float()


def twins(make: Callable[[], nn.Module]) -> tuple[Any, Any]:
    """Two models with equal parameters."""
    made = []
    for _ in range(2):
        torch.manual_seed(0)
        made.append(make())
    return made[0], made[1]


def gradients(module: nn.Module) -> dict[str, Tensor]:
    return {name: p.grad.clone() for name, p in module.named_parameters() if p.grad is not None}


def assert_close(found: dict[str, Tensor], wanted: dict[str, Tensor], tolerance: float = 1e-5) -> None:
    assert found.keys() == wanted.keys()
    for name, value in wanted.items():
        assert value.any(), f"the model's own gradient of {name} is zero"
        error = float((found[name] - value).norm() / value.norm())
        assert error < tolerance, f"{name} is off by {error:.1e}"


def assert_trains_alike(net: nn.Module, model: nn.Module, twin: nn.Module, x: Tensor) -> None:
    """Values bit for bit, and every gradient, of a net with a bin per step."""
    for module in (model, twin):
        module.zero_grad(set_to_none=True)
    got, wanted = net(x), twin(x)
    assert torch.equal(got, wanted)
    got.square().mean().backward()
    wanted.square().mean().backward()
    assert_close(gradients(model), gradients(twin))
