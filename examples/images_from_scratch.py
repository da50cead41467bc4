"""Images learnt from scratch: a convolutional and a transformer net, converted, next to backpropagation through time.

    python examples/images_from_scratch.py
    python examples/images_from_scratch.py --data mnist.npz --training 3000 --epochs 6
    python examples/images_from_scratch.py --quick

The digits of scikit-learn (8x8), or ``images`` [count, side, side] and ``labels`` of an .npz, those of more than 16
pixels a side averaged over 2x2. Every pixel spikes at every step with a probability that is its brightness. Currents
are normalised over the batch at every step; the convolutional net pools by maximum, the transformer is a small
Spikformer. Under one seed all methods have the same first weights, batches, spikes and optimiser. ``cosine`` is, at the
end of training, the lowest of all parameters' gradients to those of backpropagation through time; ``time`` that of the
processor for an epoch, relative to the first method's; ``held`` what lies between forward and backward.
"""

from __future__ import annotations

import argparse
import itertools
import statistics
import time
from collections.abc import Sequence
from pathlib import Path
from typing import Any

import numpy as np
import torch
from sklearn.datasets import load_digits
from torch import Tensor, nn
from torch.nn import functional

import tracecompile
import tracecompile.nn as snn
from tracecompile.diagnostics.held import count_held

Row = dict[str, Any]
NETS = ("conv", "transformer")
METHODS: Row = {"bptt": {}, "bins=4": {"bins": 4}, "bins=1": {"bins": 1}, "exact": {"rule": "exact"}}


def neurons(count: int) -> nn.ModuleList:
    """Returns layers of leaky neurons."""
    return nn.ModuleList(snn.LIF(leak=0.8, surrogate=snn.fast_sigmoid(5.0)) for _ in range(count))


class ConvNet(nn.Module):
    """Three convolutions with batch normalisation, two pools, and a linear readout of the mean over time."""

    def __init__(self, side: int, channels: int = 16) -> None:
        super().__init__()
        widths = (1, channels, channels)
        self.conv1, self.conv2, self.conv3 = (nn.Conv2d(width, channels, 3, padding=1, bias=False) for width in widths)
        self.norm1, self.norm2, self.norm3 = (nn.BatchNorm2d(channels) for _ in widths)
        self.neuron1, self.neuron2, self.neuron3 = neurons(3)
        self.pool, self.readout = nn.MaxPool2d(2), nn.Linear(channels * (side // 4) ** 2, 10)

    def forward(self, x: Tensor) -> Tensor:
        """Returns scores [batch, 10] for spikes [time, batch, 1, side, side]."""
        state1 = state2 = state3 = None
        scores = torch.zeros(x.shape[1], 10)
        for x_t in x:
            spikes, state1 = self.neuron1(self.norm1(self.conv1(x_t)), state1)
            spikes, state2 = self.neuron2(self.norm2(self.conv2(self.pool(spikes))), state2)
            spikes, state3 = self.neuron3(self.norm3(self.conv3(spikes)), state3)
            scores = scores + self.readout(self.pool(spikes).flatten(1))
        return scores / x.shape[0]


class Tokens(nn.Module):
    """Weights, and batch normalisation over images and tokens [batch, tokens, width] of one step."""

    def __init__(self, below: int, above: int) -> None:
        super().__init__()
        self.weights, self.norm = nn.Linear(below, above, bias=False), nn.BatchNorm1d(above)

    def forward(self, x: Tensor) -> Tensor:
        """Returns the normalised currents."""
        return self.norm(self.weights(x).transpose(1, 2)).transpose(1, 2)  # type: ignore[no-any-return]


class Spikformer(nn.Module):
    """Patches, a block of spiking self-attention and a perceptron, a linear readout of the mean over all."""

    def __init__(self, side: int, width: int = 32, heads: int = 4) -> None:
        super().__init__()
        self.heads, stride = heads, side // 4
        self.embed, self.norm = nn.Conv2d(1, width, stride + 2, stride, 1, bias=False), nn.BatchNorm2d(width)
        self.position = nn.Parameter(0.02 * torch.randn(16, width))
        self.qkv, self.project = Tokens(width, 3 * width), Tokens(width, width)
        self.up, self.down = Tokens(width, 2 * width), Tokens(2 * width, width)
        self.neurons, self.readout = neurons(6), nn.Linear(width, 10)

    def forward(self, x: Tensor) -> Tensor:
        """Returns scores [batch, 10] for spikes [time, batch, 1, side, side]."""
        states: list[Any] = [None] * len(self.neurons)
        scores = torch.zeros(x.shape[1], 10)

        def fire(layer: int, current: Tensor) -> Tensor:
            spikes, states[layer] = self.neurons[layer](current, states[layer])
            return spikes  # type: ignore[no-any-return]

        for x_t in x:
            z = fire(0, self.norm(self.embed(x_t)).flatten(2).transpose(1, 2) + self.position)
            q, k, v = fire(1, self.qkv(z)).unflatten(-1, (3, self.heads, -1)).permute(2, 0, 3, 1, 4).unbind(0)
            seen = fire(2, (0.125 * (q @ k.transpose(-2, -1)) @ v).transpose(1, 2).flatten(2))
            z = z + fire(3, self.project(seen))
            z = z + fire(5, self.down(fire(4, self.up(z))))
            scores = scores + self.readout(z.mean(1))
        return scores / x.shape[0]


def load(path: Path | None) -> tuple[Tensor, Tensor]:
    """Returns brightnesses [count, 1, side, side] and labels, in an order that is always the same."""
    data = load_digits() if path is None else np.load(path)
    brightest, key = (16.0, "target") if path is None else (255.0, "labels")
    images, labels = torch.tensor(data["images"] / brightest).float().unsqueeze(1), torch.tensor(data[key]).long()
    images = functional.avg_pool2d(images, 2) if images.shape[-1] > 16 else images
    order = torch.randperm(len(labels), generator=torch.Generator().manual_seed(0))
    return images[order], labels[order]


def spikes_of(images: Tensor, steps: int, generator: torch.Generator) -> Tensor:
    """Returns Bernoulli spikes [time, batch, 1, side, side]."""
    return torch.bernoulli(images.expand(steps, *images.shape), generator=generator)


def accuracy(model: nn.Module, images: Tensor, labels: Tensor, steps: int) -> float:
    """Returns the percentage of images recognised, from spikes that are drawn twice."""
    generator, right = torch.Generator().manual_seed(1), 0
    with torch.no_grad():
        for chosen in torch.arange(len(labels)).repeat(2).split(256):
            right += int((model(spikes_of(images[chosen], steps, generator)).argmax(1) == labels[chosen]).sum())
    return 50.0 * right / len(labels)


def train(name: str, method: str, seed: int, data: Sequence[Tensor], options: argparse.Namespace) -> Row:
    """Trains a fresh net, and returns what came of it."""
    (images, test), (labels, answers) = (part.tensor_split([options.training]) for part in data)
    torch.manual_seed(seed)
    model = (ConvNet if name == "conv" else Spikformer)(images.shape[-1])
    net = model if method == "bptt" else tracecompile.convert(model, backend=options.backend, **METHODS[method])
    optimizer = torch.optim.Adam(model.parameters(), options.rate)
    schedule = torch.optim.lr_scheduler.CosineAnnealingLR(optimizer, options.epochs * -(-len(images) // options.batch))
    generator, seconds = torch.Generator().manual_seed(seed), []
    for _ in range(options.epochs):
        start = time.process_time()
        for chosen in torch.randperm(len(images), generator=generator).split(options.batch):
            optimizer.zero_grad()
            spikes = spikes_of(images[chosen], options.steps, generator)
            functional.cross_entropy(net(spikes), labels[chosen]).backward()
            optimizer.step()
            schedule.step()
        seconds.append(time.process_time() - start)
    row: Row = {"net": name, "method": method, "seed": seed, "seconds": statistics.median(seconds), "cosine": 1.0}
    spikes, targets = spikes_of(images[: options.batch], options.steps, generator), labels[: options.batch]
    row["held"] = count_held(lambda: functional.cross_entropy(net(spikes), targets))
    if method != "bptt":
        compared = tracecompile.compare_gradients(model, net, spikes, lambda y: functional.cross_entropy(y, targets))
        row["cosine"] = compared.worst.cosine
    row["accuracy"] = accuracy(model.eval(), test, answers, options.steps)
    row["training"] = accuracy(model, images, labels, options.steps)
    return row


def main(argv: Sequence[str] | None = None) -> list[Row]:
    """Prints what every training came to, then the table; returns the trainings."""
    parser = argparse.ArgumentParser(description="Images learnt from scratch by converted nets and by the usual way.")
    parser.add_argument("--data", type=Path, help="npz file with images and labels; default: digits of scikit-learn")
    parser.add_argument("--nets", nargs="+", choices=NETS, default=list(NETS))
    parser.add_argument("--methods", nargs="+", choices=list(METHODS), default=list(METHODS))
    parser.add_argument("--seeds", type=int, nargs="+", default=[0, 1, 2])
    parser.add_argument("--training", type=int, default=1200, help="images to train on; the others are the test")
    parser.add_argument("--steps", type=int, default=32, help="time steps")
    parser.add_argument("--epochs", type=int, default=15)
    parser.add_argument("--batch", type=int, default=64)
    parser.add_argument("--rate", type=float, default=5e-3, help="learning rate, which falls to nothing as a cosine")
    parser.add_argument("--backend", default="eager", help="what runs a converted net")
    parser.add_argument("--quick", action="store_true", help="a few images and steps, to see that it runs")
    options = parser.parse_args(argv)
    if options.quick:
        options.training, options.steps, options.epochs, options.seeds, options.batch = 64, 4, 1, [0], 32
    data = [part[: 96 if options.quick else None] for part in load(options.data)]
    found: dict[tuple[str, str], list[Row]] = {}
    for name, seed, method in itertools.product(options.nets, options.seeds, options.methods):
        row = train(name, method, seed, data, options)
        print(", ".join(f"{part:.3f}" if isinstance(part, float) else str(part) for part in row.values()), flush=True)
        found.setdefault((name, method), []).append(row)
    print("\n| net | gradients | test accuracy | training | cosine | time | held |", "|---" * 7 + "|", sep="\n")
    for (name, method), rows in found.items():
        values = {key: [row[key] for row in rows] for key in rows[0]}
        test, training = (statistics.mean(values[key]) for key in ("accuracy", "training"))
        cosine, seconds, held = (statistics.median(values[key]) for key in ("cosine", "seconds", "held"))
        relative = seconds / statistics.median(row["seconds"] for row in found[name, options.methods[0]])
        shares = f"{test:.2f} ({min(values['accuracy']):.2f} - {max(values['accuracy']):.2f}) | {training:.2f}"
        print(f"| {name} | {method} | {shares} | {cosine:.3f} | {relative:.2f} | {held / 1e6:.1f} MB |")
    return [row for rows in found.values() for row in rows]


if __name__ == "__main__":
    torch.set_num_threads(1)
    main()
