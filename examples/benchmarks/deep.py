"""Memory and time of a deep residual network: converted, beside backpropagation through time and what saves memory.

    pip install 'tracecompile[spikingjelly]'
    python examples/benchmarks/deep.py
    python examples/benchmarks/deep.py --mode m --steps 8 64 --repeats 5
    python examples/benchmarks/deep.py --fidelity --mode s --steps 8 16 --width 16
    python examples/benchmarks/deep.py --quick

A residual network of 18 layers as SEW-ResNet has them (Fang et al., 2021), of SpikingJelly's neurons, on 64x64 images
of three channels, batch 8. In mode 's' every step passes the whole network, and each layer is normalised step by step;
in mode 'm' every layer takes all steps, and is normalised over time and batch. The rows are the network by
backpropagation through time; with activation checkpointing (segments of sqrt(T) steps, or block by block); with
SpikingJelly's own ``memopt`` (Huang et al., 2025), whose first level runs on the CPU; and converted.

Time is that of a training step without an update, the median of runs in which all rows take turns. Peak memory is
that of a fresh process, conversion included, after two training steps. ``--fidelity`` compares the gradient of every
parameter with that of backpropagation through time instead, after 20 training steps on digits, 16 at a time.
"""

from __future__ import annotations

import argparse
import functools
import itertools
import json
import math
import statistics
import subprocess
import sys
import time
from collections.abc import Callable, Sequence

import torch
from sklearn.datasets import load_digits
from spikingjelly.activation_based import base, layer, neuron, surrogate
from spikingjelly.activation_based import functional as steps_of
from torch import Tensor, nn
from torch.nn import functional
from torch.utils.checkpoint import checkpoint

import tracecompile
from tracecompile.bench import memopt
from tracecompile.diagnostics.memory import peak_resident_bytes

BATCH, SIDE, WIDTH, CLASSES = 8, 64, 64, 10
ROWS = ("bptt", "checkpoint", "memopt", "bins=4", "exact")


class Layer(memopt.Layer):
    """Convolution, norm, neurons."""

    def __init__(self, inputs: int, outputs: int, kernel: int, stride: int, mode: str) -> None:
        conv = nn.Conv2d(inputs, outputs, kernel, stride, padding=kernel // 2, bias=False)
        parts = (conv, nn.BatchNorm2d(outputs))
        currents = layer.SeqToANNContainer(*parts) if mode == "m" else nn.Sequential(*parts)
        neurons = neuron.LIFNode(detach_reset=True, surrogate_function=surrogate.ATan(), step_mode=mode)
        super().__init__(currents, neurons)


class Block(nn.Module):
    """Two layers, and what came in is added to their spikes."""

    def __init__(self, inputs: int, outputs: int, stride: int, mode: str) -> None:
        super().__init__()
        self.first = Layer(inputs, outputs, 3, stride, mode)
        self.second = Layer(outputs, outputs, 3, 1, mode)
        self.skip = nn.Identity() if inputs == outputs else Layer(inputs, outputs, 1, stride, mode)

    def forward(self, x: Tensor) -> Tensor:
        return self.second(self.first(x)) + self.skip(x)


class ResNet(nn.Module):
    """Maps images [time, batch, 3, side, side] to mean scores [batch, classes]."""

    def __init__(self, mode: str, width: int) -> None:
        super().__init__()
        self.mode, self.keeps = mode, True
        self.stem = Layer(3, width, 7, 2, mode)
        self.pool = nn.MaxPool2d(3, 2, 1)
        widths = [width, width, 2 * width, 4 * width, 8 * width]
        ends = [(a, b, 1 if a == b else 2) for a, b in itertools.pairwise(widths)]
        blocks = [block for a, b, stride in ends for block in (Block(a, b, stride, mode), Block(b, b, 1, mode))]
        self.blocks = nn.ModuleList(blocks)
        self.readout = nn.Linear(8 * width, CLASSES)

    def step(self, x: Tensor) -> Tensor:
        """Maps one image, or in mode 'm' all of them, to scores."""
        x = self.stem(x)
        x = steps_of.seq_to_ann_forward(x, self.pool) if self.mode == "m" else self.pool(x)
        for block in self.blocks:
            x = block(x) if self.keeps else checkpoint(functools.partial(_anew, block), x, use_reentrant=False)
        return self.readout(x.mean((-2, -1)))

    def forward(self, x: Tensor) -> Tensor:
        steps_of.reset_net(self)
        if self.mode == "m":
            return self.step(x).mean(0)
        total = torch.zeros(x.shape[1], CLASSES)
        for x_t in x:
            total = total + self.step(x_t)
        return total / x.shape[0]


class Checkpointed(nn.Module):
    """The network of mode 's' in segments of time, of which the states between them are kept alone."""

    def __init__(self, model: ResNet) -> None:
        super().__init__()
        self.model = model

    def forward(self, x: Tensor) -> Tensor:
        steps_of.reset_net(self.model)
        total, memories = torch.zeros(x.shape[1], CLASSES), list(base.extract_memories(self.model))
        for part in x.split(math.isqrt(len(x) - 1) + 1):
            scores, *memories = checkpoint(self.segment, part, *memories, use_reentrant=False)
            total = total + scores
        return total / x.shape[0]

    def segment(self, part: Tensor, *memories: Tensor | float) -> tuple[Tensor, ...]:
        """Returns the sum of the scores of some steps, and the states after them."""
        base.load_memories(self.model, list(memories))
        total = torch.stack([self.model.step(x_t) for x_t in part]).sum(0)
        return total, *base.extract_memories(self.model)


def _anew(block: nn.Module, x: Tensor) -> Tensor:
    steps_of.reset_net(block)
    result: Tensor = block(x)
    return result


def made(row: str, mode: str, steps: int, width: int, side: int) -> tuple[nn.Module, Callable[[], None]]:
    """Returns the network of a row, and its training step."""
    torch.manual_seed(0)
    model, x = ResNet(mode, width), (torch.rand(steps, BATCH, 3, side, side) < 0.3).float()
    labels, net = torch.arange(BATCH) % CLASSES, model
    if row == "checkpoint" and mode == "m":
        model.keeps = False
    elif row == "checkpoint":
        net = Checkpointed(model)
    elif row == "memopt":
        net = memopt.optimized(model, x[:2])
    elif row != "bptt":
        options = {"rule": "exact"} if row == "exact" else {"bins": 4}
        net = tracecompile.convert(model, x[:4, :2], backend="eager", **options)

    def step() -> None:
        model.zero_grad()
        functional.cross_entropy(net(x), labels).backward()

    return model, step


def peak(row: str, mode: str, steps: int, options: argparse.Namespace) -> int:
    """Returns the peak memory of a fresh process, in bytes."""
    command = [sys.executable, "-W", "ignore", __file__, "--here", row, "--mode", mode, "--steps", str(steps)]
    command += ["--width", str(options.width), "--side", str(options.side)]
    done = subprocess.run(command, capture_output=True, text=True, check=True)
    return int(json.loads(done.stdout.strip().splitlines()[-1]))


def seconds(mode: str, steps: int, options: argparse.Namespace) -> dict[str, float]:
    """Returns the median time of every row's training step; all rows take turns."""
    runs = {row: made(row, mode, steps, options.width, options.side)[1] for row in options.rows}
    taken: dict[str, list[float]] = {row: [] for row in runs}
    for repeat in range(options.repeats + 1):
        for row, run in runs.items():
            start = time.perf_counter()
            run()
            if repeat:  # the first one warms up
                taken[row].append(time.perf_counter() - start)
    return {row: statistics.median(found) for row, found in taken.items()}


def fidelity(mode: str, steps: int, options: argparse.Namespace) -> tuple[list[float], list[float]]:
    """Returns cosines and norm ratios of all parameters with four bins, each in order, after a little training."""
    digits, generator = load_digits(), torch.Generator().manual_seed(0)
    torch.manual_seed(0)
    model = ResNet(mode, options.width)
    optimizer = torch.optim.Adam(model.parameters(), lr=1e-3)

    def loss(net: nn.Module, x: Tensor, labels: Tensor) -> Tensor:
        model.zero_grad()
        return functional.cross_entropy(net(x), labels)

    def batch() -> tuple[Tensor, Tensor]:
        chosen = torch.randint(len(digits.images), (16,), generator=generator)
        images = torch.tensor(digits.images[chosen] / 16, dtype=torch.float32).unsqueeze(1)
        shown = functional.interpolate(images, size=(options.side, options.side)).expand(-1, 3, -1, -1)
        return (torch.rand(steps, *shown.shape, generator=generator) < shown).float(), torch.tensor(digits.target)[
            chosen
        ]

    for _ in range(20):
        loss(model, *batch()).backward()
        optimizer.step()
    x, labels = batch()
    loss(model, x, labels).backward()
    expected = [parameter.grad for parameter in model.parameters()]
    steps_of.reset_net(model)
    net = tracecompile.convert(model, x[:4, :2], bins=4, backend="eager")
    loss(net, x, labels).backward()
    pairs = [(parameter.grad, wanted) for parameter, wanted in zip(model.parameters(), expected, strict=True)]
    cosines = [functional.cosine_similarity(one.flatten(), other.flatten(), 0).item() for one, other in pairs]
    return sorted(cosines), sorted((one.norm() / other.norm()).item() for one, other in pairs)


def main(argv: Sequence[str] | None = None) -> None:
    """Prints the table."""
    parser = argparse.ArgumentParser(description=(__doc__ or "").partition("\n")[0])
    parser.add_argument("--mode", nargs="+", choices=("s", "m"), default=["s", "m"])
    parser.add_argument("--steps", type=int, nargs="+", default=[8, 64])
    parser.add_argument("--rows", nargs="+", choices=ROWS, default=list(ROWS))
    parser.add_argument("--repeats", type=int, default=3)
    parser.add_argument("--width", type=int, default=WIDTH)
    parser.add_argument("--side", type=int, default=SIDE)
    parser.add_argument("--fidelity", action="store_true", help="compare gradients, and neither time nor memory")
    parser.add_argument("--quick", action="store_true", help="a small network and few steps: a look, not a result")
    parser.add_argument("--here", choices=ROWS, help="run one row in this process, and print its bytes alone")
    options = parser.parse_args(argv)
    if options.quick:
        options.steps, options.repeats, options.width, options.side = [2, 6], 1, 4, 16
    if options.here:
        _, step = made(options.here, options.mode[0], options.steps[0], options.width, options.side)
        step(), step()
        print(json.dumps(peak_resident_bytes()))
        return
    for mode in options.mode:
        for steps in options.steps:
            if options.fidelity:
                cosines, ratios = fidelity(mode, steps, options)
                lowest, middle = cosines[0], statistics.median(cosines)
                print(
                    f"mode {mode}  T = {steps:<4} {lowest:.3f}, median {middle:.3f}; {ratios[0]:.2f} - {ratios[-1]:.2f}"
                )
                continue
            times = seconds(mode, steps, options)
            for row in options.rows:
                found, ratio = peak(row, mode, steps, options), times[row] / times[options.rows[0]]
                print(
                    f"mode {mode}  T = {steps:<4} {row:<11} {times[row]:8.2f} s  {ratio:5.2f}  {found / 2**20:7.0f} MB",
                    flush=True,
                )


if __name__ == "__main__":
    main()
