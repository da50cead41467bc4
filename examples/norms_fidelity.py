"""How close the measured rule comes to backpropagation through time where synapses are not linear, as a table.

    python examples/norms_fidelity.py
    python examples/norms_fidelity.py --norms batch none --steps 32 --bins 4 --data digits
    python examples/norms_fidelity.py --quick

Two convolutions of 8 channels (8x8, then 4x4), with normalised currents or a pooling by maximum between them; or a
block of spiking self-attention on 16 tokens. Leaky neurons, leak 0.8, and a linear readout of which the mean over time
is taken. What comes in is rate-coded: the digits of scikit-learn; or ten random patterns, of which each image
shows one and as much that is its own; or spikes without any pattern. The patterns are the hard case: the network
cannot learn much, so that little is left of the gradient of a normalised layer but what the spikes of single steps do.
Every network is trained a little by backpropagation through time, then its gradients are compared, parameter by
parameter, on new batches. A row gives the cosine and, behind it, the norm ratio of every parameter: medians over
networks and batches.
"""

from __future__ import annotations

import argparse
import itertools
import statistics
from collections import defaultdict
from collections.abc import Callable, Iterator, Sequence
from typing import Any

import torch
from sklearn.datasets import load_digits
from torch import Tensor, nn
from torch.nn import functional

import tracecompile
import tracecompile.nn as snn

CHANNELS, SIDE = 8, 8
DATA = ("digits", "patterns", "random")
NORMS: dict[str, Callable[[int], nn.Module]] = {
    "batch": lambda side: nn.BatchNorm2d(CHANNELS),
    "batch, eval": lambda side: nn.BatchNorm2d(CHANNELS),
    "layer": lambda side: nn.LayerNorm([CHANNELS, side, side]),
    "group": lambda side: nn.GroupNorm(2, CHANNELS),
    "none": lambda side: nn.Identity(),
    "maximum": lambda side: nn.Identity(),
}
NETWORKS = (*NORMS, "attention")


def neurons(count: int, detach_reset: bool) -> list[snn.LIF]:
    """Returns layers of leaky neurons."""
    surrogate = snn.fast_sigmoid(5.0)
    return [snn.LIF(leak=0.8, detach_reset=detach_reset, surrogate=surrogate) for _ in range(count)]


class ConvNet(nn.Module):
    """Two convolutions with a normalisation each, and a linear readout; mean scores, [batch, 10]."""

    def __init__(self, norm: str, detach_reset: bool = True) -> None:
        super().__init__()
        plain, pools = norm in ("none", "maximum"), norm == "maximum"
        self.conv1 = nn.Conv2d(1, CHANNELS, 3, padding=1, bias=plain)
        self.conv2 = nn.Conv2d(CHANNELS, CHANNELS, 3, stride=1 if pools else 2, padding=1, bias=plain)
        self.pool = nn.MaxPool2d(2) if pools else nn.Identity()
        self.norm1, self.norm2 = NORMS[norm](SIDE), NORMS[norm](SIDE // 2)
        self.neuron1, self.neuron2 = neurons(2, detach_reset)
        self.readout = nn.Linear(CHANNELS * (SIDE // 2) ** 2, 10)

    def forward(self, x: Tensor) -> Tensor:
        """Returns the scores for spikes [time, batch, 1, side, side]."""
        state1 = state2 = None
        scores = torch.zeros(x.shape[1], 10, dtype=x.dtype)
        for x_t in x:
            spikes1, state1 = self.neuron1(self.norm1(self.conv1(x_t)), state1)
            spikes2, state2 = self.neuron2(self.norm2(self.conv2(self.pool(spikes1))), state2)
            scores = scores + self.readout(spikes2.flatten(1))
        return scores / x.shape[0]


class AttentionNet(nn.Module):
    """One block of spiking self-attention with layer norms, and a linear readout; mean scores, [batch, 10]."""

    def __init__(self, detach_reset: bool = True, width: int = 32, heads: int = 4) -> None:
        super().__init__()
        self.heads = heads
        self.embed, self.norm = nn.Conv2d(1, width, 2, stride=2), nn.LayerNorm(width)
        self.qkv, self.norm_qkv = nn.Linear(width, 3 * width), nn.LayerNorm(3 * width)
        self.project, self.norm_project = nn.Linear(width, width), nn.LayerNorm(width)
        self.up, self.norm_up = nn.Linear(width, 2 * width), nn.LayerNorm(2 * width)
        self.down, self.norm_down = nn.Linear(2 * width, width), nn.LayerNorm(width)
        self.readout, self.neurons = nn.Linear(width, 10), nn.ModuleList(neurons(6, detach_reset))

    def forward(self, x: Tensor) -> Tensor:
        """Returns the scores for spikes [time, batch, 1, side, side]."""
        states: list[Any] = [None] * len(self.neurons)
        scores = torch.zeros(x.shape[1], 10, dtype=x.dtype)

        def fire(layer: int, current: Tensor) -> Tensor:
            spikes, states[layer] = self.neurons[layer](current, states[layer])
            return spikes  # type: ignore[no-any-return]

        for x_t in x:
            z = fire(0, self.norm(self.embed(x_t).flatten(2).transpose(1, 2)))
            qkv = fire(1, self.norm_qkv(self.qkv(z)))
            query, key, value = qkv.unflatten(-1, (3, self.heads, -1)).permute(2, 0, 3, 1, 4).unbind(0)
            seen = 0.25 * (query @ key.transpose(-2, -1)) @ value
            seen = fire(2, seen.transpose(1, 2).flatten(2))
            z = z + fire(3, self.norm_project(self.project(seen)))
            z = z + fire(5, self.norm_down(self.down(fire(4, self.norm_up(self.up(z))))))
            scores = scores + self.readout(z.mean(1))
        return scores / x.shape[0]


def draw(steps: int, batch: int, data: str, generator: torch.Generator) -> tuple[Tensor, Tensor]:
    """Returns spikes [time, batch, 1, side, side] and labels."""
    labels = torch.randint(10, (batch,), generator=generator)
    rates = torch.full((batch, 1, SIDE, SIDE), 0.3)
    if data == "digits":
        digits = load_digits()
        chosen = torch.randint(len(digits.target), (batch,), generator=generator)
        rates = torch.tensor(digits.images / 16.0, dtype=torch.float32)[chosen].unsqueeze(1)
        labels = torch.tensor(digits.target)[chosen]
    elif data == "patterns":
        patterns = torch.rand(10, 1, SIDE, SIDE, generator=torch.Generator().manual_seed(5))
        rates = 0.6 * patterns[labels] + 0.4 * torch.rand(rates.shape, generator=generator)
    return torch.bernoulli(rates.expand(steps, *rates.shape), generator=generator), labels


def trained(norm: str, data: str, options: argparse.Namespace, seed: int) -> nn.Module:
    """Returns a network that was trained a little on short sequences."""
    torch.manual_seed(seed)
    model: nn.Module = (
        AttentionNet(not options.in_graph) if norm == "attention" else ConvNet(norm, not options.in_graph)
    )
    generator = torch.Generator().manual_seed(seed)
    optimizer = torch.optim.Adam(model.parameters(), 5e-3)
    for _ in range(options.updates):
        spikes, labels = draw(16, 32, data, generator)
        optimizer.zero_grad()
        functional.cross_entropy(model(spikes), labels).backward()
        optimizer.step()
    return model.train(norm != "batch, eval")


def rows(options: argparse.Namespace) -> Iterator[dict[str, Any]]:
    """Yields the rows of the table."""
    for data, norm in itertools.product(options.data, options.norms):
        models = [trained(norm, data, options, seed) for seed in range(options.networks)]
        for steps in options.steps:
            found: dict[int, dict[str, list[tuple[float, float]]]] = {k: defaultdict(list) for k in options.bins}
            generator = torch.Generator().manual_seed(1000)
            for model in models:
                for _ in range(options.batches):
                    spikes, labels = draw(steps, 16, data, generator)
                    for bins in options.bins:
                        net = tracecompile.convert(model, spikes, bins=bins)
                        compared = tracecompile.compare_gradients(
                            model, net, spikes, lambda scores, labels=labels: functional.cross_entropy(scores, labels)
                        )
                        for row in compared.rows:
                            found[bins][row.parameter].append((row.cosine, row.norm_ratio))
            for bins, by_name in found.items():
                medians = {
                    name: tuple(statistics.median(part) for part in zip(*values, strict=True))
                    for name, values in by_name.items()
                }
                yield {"data": data, "norm": norm, "steps": steps, "bins": bins, "parameters": medians}


def main(argv: Sequence[str] | None = None) -> list[dict[str, Any]]:
    """Prints the table as its rows come, and returns them."""
    parser = argparse.ArgumentParser(
        description="Gradients of networks with synapses that are not linear next to the exact ones."
    )
    parser.add_argument("--norms", nargs="+", choices=NETWORKS, default=list(NETWORKS), help="which networks")
    parser.add_argument("--steps", type=int, nargs="+", default=[32, 128], help="time steps")
    parser.add_argument("--bins", type=int, nargs="+", default=[1, 4, 10])
    parser.add_argument("--data", nargs="+", choices=DATA, default=list(DATA), help="what comes in")
    parser.add_argument("--in-graph", action="store_true", help="resets in the graph, in place of detached ones")
    parser.add_argument("--networks", type=int, default=3, help="networks per row")
    parser.add_argument("--batches", type=int, default=2, help="batches per network")
    parser.add_argument("--updates", type=int, default=100, help="optimiser steps before comparing")
    parser.add_argument("--quick", action="store_true", help="one small row, to see that it runs")
    options = parser.parse_args(argv)
    if options.quick:
        options.data, options.norms, options.steps, options.bins = (
            ["patterns"],
            ["batch", "layer", "maximum", "attention"],
            [8],
            [8],
        )
        options.networks = options.batches = options.updates = 1
    found = []
    for row in rows(options):
        values = "  ".join(f"{n} {c:.3f} / {r:.2f}" for n, (c, r) in row["parameters"].items())
        print(f"{row['data']:<10}{row['norm']:<12}T = {row['steps']:<5}K = {row['bins']:<4}{values}", flush=True)
        found.append(row)
    return found


if __name__ == "__main__":
    torch.set_num_threads(1)
    main()
