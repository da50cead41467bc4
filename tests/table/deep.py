"""Deep networks as the field writes them: residual, normalised per step or over time and batch, with attention."""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

import torch
import torch.nn.functional as F
from support.containers import SeqToANN
from torch import Tensor, nn

import tracecompile.nn as snn
from table.harness import Entry

CHANNELS, SIDE, CLASSES = 4, 6, 3
TOKENS, WIDTH, HEADS = 5, 8, 2
SPIKE = snn.arctan(2.0)


def film(steps: int, batch: int) -> tuple[Tensor]:
    """A sequence of frames of events, time first."""
    return ((torch.rand(steps, batch, 2, SIDE, SIDE) < 0.4).float(),)


def tokens(steps: int, batch: int) -> tuple[Tensor]:
    """A sequence of sets of tokens, time first."""
    return ((torch.rand(steps, batch, TOKENS, WIDTH) < 0.4).float(),)


def picture(steps: int, batch: int) -> tuple[Tensor]:
    """One picture, shown at every step."""
    return (torch.rand(batch, 2, SIDE, SIDE),)


def conv(inputs: int, outputs: int = CHANNELS, stride: int = 1) -> nn.Conv2d:
    return nn.Conv2d(inputs, outputs, 3, stride, 1, bias=False)


# Step by step: the loop is around the whole network.


class Leaky(nn.Module):
    """Neurons whose membrane is an attribute."""

    def __init__(self) -> None:
        super().__init__()
        self.v: Any = 0.0

    def forward(self, current: Tensor) -> Tensor:
        v = 0.5 * self.v + current
        z: Tensor = SPIKE(v - 0.6)
        self.v = v * (1 - z.detach())
        return z


class StepByStep(nn.Module):
    """A network for one step in a loop over time; its neurons start afresh."""

    def __init__(self, net: nn.Module) -> None:
        super().__init__()
        self.net = net

    def forward(self, x: Tensor) -> Tensor:
        for module in self.modules():
            if isinstance(module, Leaky):
                module.v = 0.0
        return torch.stack([self.net(x_t) for x_t in x]).mean(0)


class Residual(nn.Module):
    """A basic block whose spikes are combined with those that come in (SEW)."""

    def __init__(self, norm: Callable[[int], nn.Module], combine: str = "add") -> None:
        super().__init__()
        self.conv1, self.norm1, self.sn1 = conv(CHANNELS), norm(CHANNELS), Leaky()
        self.conv2, self.norm2, self.sn2 = conv(CHANNELS), norm(CHANNELS), Leaky()
        self.combine = combine

    def forward(self, x: Tensor) -> Tensor:
        z = self.sn2(self.norm2(self.conv2(self.sn1(self.norm1(self.conv1(x))))))
        if self.combine == "add":
            return z + x
        return z * x if self.combine == "and" else x * (1 - z)


class Preactivated(nn.Module):
    """Neurons before the weights, and a shortcut between membranes (MS)."""

    def __init__(self) -> None:
        super().__init__()
        self.sn1, self.conv1, self.norm1 = Leaky(), conv(CHANNELS), nn.BatchNorm2d(CHANNELS)
        self.sn2, self.conv2, self.norm2 = Leaky(), conv(CHANNELS), nn.BatchNorm2d(CHANNELS)

    def forward(self, x: Tensor) -> Tensor:
        return x + self.norm2(self.conv2(self.sn2(self.norm1(self.conv1(self.sn1(x))))))


def groups(channels: int) -> nn.Module:
    return nn.GroupNorm(2, channels)


def stem(norm: Callable[[int], nn.Module]) -> list[nn.Module]:
    return [conv(2), norm(CHANNELS), Leaky()]


def head(side: int = SIDE) -> list[nn.Module]:
    return [nn.Flatten(), nn.Linear(CHANNELS * side * side, CLASSES)]


def by_step(*parts: nn.Module) -> nn.Module:
    return StepByStep(nn.Sequential(*parts))


def vgg() -> nn.Module:
    second = [conv(CHANNELS), nn.BatchNorm2d(CHANNELS), Leaky(), nn.MaxPool2d(2)]
    return by_step(*stem(nn.BatchNorm2d), nn.MaxPool2d(2), *second, nn.Dropout(0.0), *head(1))


class StepAttention(nn.Module):
    """Spiking self-attention and a perceptron behind it, of one step."""

    def __init__(self) -> None:
        super().__init__()
        self.qkv, self.norm = nn.Linear(WIDTH, 3 * WIDTH), nn.LayerNorm(3 * WIDTH)
        self.project, self.up, self.down = nn.Linear(WIDTH, WIDTH), nn.Linear(WIDTH, 12), nn.Linear(12, WIDTH)
        self.norm1, self.norm2, self.norm3 = nn.LayerNorm(WIDTH), nn.LayerNorm(12), nn.LayerNorm(WIDTH)
        self.out = nn.Linear(WIDTH, CLASSES)
        self.sn = nn.ModuleList(Leaky() for _ in range(5))

    def forward(self, x: Tensor) -> Tensor:
        batch, count, width = x.shape
        qkv = self.sn[0](self.norm(self.qkv(x))).reshape(batch, count, 3, HEADS, width // HEADS).permute(2, 0, 3, 1, 4)
        query, key, value = qkv.unbind(0)
        seen = (query @ key.transpose(-2, -1)) @ value * 0.5
        seen = self.sn[1](seen.transpose(1, 2).reshape(batch, count, width))
        x = x + self.sn[2](self.norm1(self.project(seen)))
        x = x + self.sn[4](self.norm3(self.down(self.sn[3](self.norm2(self.up(x))))))
        return self.out(x.mean(1))


# Layer by layer: every layer takes the whole sequence, [time, batch, ...].


class OverTime(nn.Module):
    """Neurons that take a whole sequence."""

    def forward(self, currents: Tensor) -> Tensor:
        v = torch.zeros_like(currents[0])
        spikes = []
        for current in currents:
            v = 0.5 * v + current
            z = SPIKE(v - 0.6)
            v = v * (1 - z.detach())
            spikes.append(z)
        return torch.stack(spikes)


class ThresholdNorm(nn.Module):
    """Normalises over time and batch, and scales by the threshold (tdBN)."""

    def __init__(self, channels: int, threshold: float = 0.6) -> None:
        super().__init__()
        self.norm, self.threshold = nn.BatchNorm3d(channels), threshold

    def forward(self, x: Tensor) -> Tensor:
        y: Tensor = self.norm(x.permute(1, 2, 0, 3, 4)).permute(2, 0, 1, 3, 4)
        return self.threshold * y


class StepScaledNorm(nn.Module):
    """Normalises over time and batch, with a weight of its own for each time step (TEBN)."""

    def __init__(self, channels: int, steps: int) -> None:
        super().__init__()
        self.norm, self.scale = nn.BatchNorm2d(channels), nn.Parameter(torch.linspace(0.5, 1.5, steps))

    def forward(self, x: Tensor) -> Tensor:
        y: Tensor = self.norm(x.flatten(0, 1)).view_as(x)
        return y * self.scale.view(-1, 1, 1, 1, 1)


class WholeResidual(nn.Module):
    """A residual net normalised over time and batch."""

    def __init__(self, norm: Callable[[int], nn.Module]) -> None:
        super().__init__()
        self.conv1, self.norm1, self.sn1 = SeqToANN(conv(2)), norm(CHANNELS), OverTime()
        self.conv2, self.norm2, self.sn2 = SeqToANN(conv(CHANNELS)), norm(CHANNELS), OverTime()
        self.out = nn.Linear(CHANNELS * SIDE * SIDE, CLASSES)

    def forward(self, x: Tensor) -> Tensor:
        first = self.sn1(self.norm1(self.conv1(x)))
        second = self.sn2(self.norm2(self.conv2(first))) + first
        return self.out(second.flatten(2)).mean(0)


class WholeVgg(nn.Module):
    """Convolutions with pooling in containers."""

    def __init__(self) -> None:
        super().__init__()
        self.first = SeqToANN(conv(2), nn.BatchNorm2d(CHANNELS), nn.MaxPool2d(2))
        self.second = SeqToANN(conv(CHANNELS), nn.BatchNorm2d(CHANNELS), nn.AvgPool2d(3))
        self.sn, self.out = OverTime(), SeqToANN(nn.Flatten(), nn.Linear(CHANNELS, CLASSES))

    def forward(self, x: Tensor) -> Tensor:
        return self.out(self.sn(2 * self.second(self.sn(self.first(x))))).mean(0)


def dense(inputs: int, outputs: int) -> nn.Module:
    """A layer on the last axis, normalised over time, batch and tokens."""
    return SeqToANN(nn.Linear(inputs, outputs), TokenNorm(outputs))


class TokenNorm(nn.BatchNorm1d):
    """Takes (batch, tokens, features)."""

    def forward(self, x: Tensor) -> Tensor:
        return super().forward(x.transpose(-1, -2)).transpose(-1, -2).contiguous()


class WholeAttention(nn.Module):
    """Spiking self-attention on [time, batch, tokens, features]; three ways to write it."""

    def __init__(self, kind: str) -> None:
        super().__init__()
        self.kind, self.sn = kind, OverTime()
        self.query, self.key, self.value = (dense(WIDTH, WIDTH) for _ in range(3))
        self.project, self.out = dense(WIDTH, WIDTH), nn.Linear(WIDTH, CLASSES)

    def split(self, x: Tensor) -> Tensor:
        return x.reshape(x.shape[0], 4 * x.shape[1] // 2 // 2, x.shape[2], HEADS, -1).transpose(2, 3)

    def forward(self, x: Tensor) -> Tensor:
        query, key, value = (self.sn(part(x)) for part in (self.query, self.key, self.value))
        if self.kind == "self":
            query, key, value = map(self.split, (query, key, value))
            seen = (query @ (key.transpose(-2, -1) @ value) * 0.5).transpose(2, 3).reshape(x.shape)
        elif self.kind == "einsum":
            seen = torch.einsum("tbnd,tbmd,tbme->tbne", query, key, value) * 0.25
        elif self.kind == "driven":
            seen = 2 * query * self.sn((key * value).sum(2, keepdim=True)) + value
        else:  # a token is let through where enough of its query fires
            seen = 2 * self.sn(query.sum(-1, keepdim=True) / 2) * key + value
        x = x + self.sn(self.project(self.sn(seen)))
        return self.out(x.mean(2)).mean(0)


class SeesOnePicture(nn.Module):
    """The first layer sees one picture at every step."""

    def __init__(self, steps: int) -> None:
        super().__init__()
        self.steps = steps
        self.encode, self.norm = conv(2), nn.BatchNorm2d(CHANNELS)
        self.block, self.out = WholeResidual(nn.BatchNorm2d).conv2, nn.Linear(CHANNELS * SIDE * SIDE, CLASSES)
        self.norm2, self.sn = SeqToANN(nn.BatchNorm2d(CHANNELS)), OverTime()

    def forward(self, x: Tensor) -> Tensor:
        current = self.norm(self.encode(x))
        z = self.sn(current.unsqueeze(0).repeat(self.steps, 1, 1, 1, 1))
        z = self.sn(self.norm2(self.block(z)))
        return F.adaptive_avg_pool2d(z.mean(0), SIDE).flatten(1) @ self.out.weight.t()


def _whole(name: str, build: Callable[[], nn.Module], example: Callable[[int, int], Any] = film) -> Entry:
    return Entry(f"deep: {name}, over time and batch", build, example, mixes=True)


ENTRIES = [
    Entry(
        "deep: SEW residual, batch norm",
        lambda: by_step(*stem(nn.BatchNorm2d), Residual(nn.BatchNorm2d), *head()),
        film,
    ),
    Entry(
        "deep: SEW residual by AND",
        lambda: by_step(*stem(nn.BatchNorm2d), Residual(nn.BatchNorm2d, "and"), *head()),
        film,
    ),
    Entry("deep: SEW residual by IAND", lambda: by_step(*stem(groups), Residual(groups, "iand"), *head()), film),
    Entry(
        "deep: SEW residual, group norm and max pooling",
        lambda: by_step(*stem(groups), Residual(groups), nn.MaxPool2d(2), *head(3)),
        film,
    ),
    Entry("deep: membrane shortcut", lambda: by_step(conv(2), Preactivated(), Preactivated(), Leaky(), *head()), film),
    Entry("deep: VGG with max pooling", vgg, film),
    Entry("deep: spiking self-attention, layer norm", lambda: StepByStep(StepAttention()), tokens),
    _whole("residual net", lambda: WholeResidual(lambda channels: SeqToANN(nn.BatchNorm2d(channels)))),
    _whole("threshold-dependent norm", lambda: WholeResidual(ThresholdNorm)),
    _whole("VGG", WholeVgg),
    _whole("self-attention", lambda: WholeAttention("self"), tokens),
    _whole("self-attention by einsum", lambda: WholeAttention("einsum"), tokens),
    _whole("spike-driven attention", lambda: WholeAttention("driven"), tokens),
    _whole("token attention", lambda: WholeAttention("token"), tokens),
    Entry(
        "deep: a norm with a weight for each step",
        lambda: nn.Identity(),
        film,
        build_for=lambda steps: WholeResidual(lambda channels: StepScaledNorm(channels, steps)),
        mixes=True,
    ),
    Entry("deep: one picture at every step", lambda: nn.Identity(), picture, build_for=SeesOnePicture, mixes=True),
]
