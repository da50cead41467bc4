"""A deep convolutional network converts in seconds."""

from __future__ import annotations

import copy
import inspect
import sys
import time
from itertools import pairwise

import torch
from models import FastSigmoid
from torch import Tensor, nn

import tracecompile


class Block(nn.Module):
    """Convolution, batch normalisation and a neuron that keeps its membrane."""

    def __init__(self, below: int, above: int) -> None:
        super().__init__()
        self.conv = nn.Conv2d(below, above, 3, padding=1, bias=False)
        self.norm = nn.BatchNorm2d(above)
        self.mem: Tensor | None = None

    def forward(self, x: Tensor) -> Tensor:
        current = self.norm(self.conv(x))
        self.mem = current if self.mem is None else 0.9 * self.mem + current
        fired = FastSigmoid.apply(self.mem - 1.0)
        self.mem = self.mem - fired.detach()
        return fired


class TwentyLayers(nn.Module):
    """Twenty blocks, every other one with a skip connection, and a leaky readout."""

    def __init__(self) -> None:
        super().__init__()
        self.blocks = nn.ModuleList(Block(below, above) for below, above in pairwise([2] + [16] * 20))
        self.fc = nn.Linear(16, 10)

    def forward(self, x: Tensor) -> Tensor:
        for block in self.blocks:
            block.mem = None
        mem, total = 0.0, 0.0
        for signal in x:
            for index, block in enumerate(self.blocks):
                signal = block(signal) + (signal if index % 2 else 0.0)
            mem = 0.9 * mem + self.fc(signal.mean((2, 3)))
            total = total + mem
        return total


def test_twenty_convolutional_layers_convert_in_seconds() -> None:
    torch.manual_seed(0)
    model, x = TwentyLayers(), 2 * torch.randn(10, 4, 2, 16, 16)
    start = time.process_time()  # the time of this process: other work on the machine does not count
    net = tracecompile.convert(model, x)
    assert time.process_time() - start < 10
    assert len([layer for layer in net.report.layers if layer.kind == "spiking"]) == 20


class Deep(nn.Module):
    """Many dense layers with skip connections."""

    def __init__(self, layers: int) -> None:
        super().__init__()
        self.layers = nn.ModuleList(nn.Linear(6, 6) for _ in range(layers))

    def forward(self, x: Tensor) -> Tensor:
        membranes, outs = [x.new_zeros(x.shape[1], 6) for _ in self.layers], []
        for signal in x:
            for index, layer in enumerate(self.layers):
                mem = 0.8 * membranes[index] + layer(signal)
                fired = FastSigmoid.apply(mem - 0.3)
                membranes[index], signal = mem - 0.3 * fired, signal + fired
            outs.append(signal)
        return torch.stack(outs)


def test_a_copy_does_not_go_from_operation_to_operation() -> None:
    net = tracecompile.convert(Deep(30), torch.randn(6, 2, 6))
    before = sys.getrecursionlimit()
    try:
        sys.setrecursionlimit(len(inspect.stack()) + 250)  # fewer than a model of two hundred operations would take
        other = copy.deepcopy(net)
    finally:
        sys.setrecursionlimit(before)
    x = torch.randn(9, 3, 6)
    assert torch.equal(other(x), net(x))
