"""Spoken digits: two recurrent spiking layers, trained in constant memory or (--bptt) the ordinary way.

    python examples/spoken_digits.py --data spoken_digits.npz
    python examples/spoken_digits.py --data spoken_digits.npz --bptt

Each recording is 100 frames of 10 ms with 40 log-mel channels; every channel spikes with a probability that is its
energy. ``make_spoken_digits.py`` makes the data file from the Free Spoken Digit Dataset.
"""

from __future__ import annotations

import argparse
import time
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path

import numpy as np
import torch
from torch import nn
from torch.nn import functional

import tracecompile
import tracecompile.nn as snn
from tracecompile.diagnostics.held import count_held

HOW_TO_GET_THE_DATA = """\
This example needs the Free Spoken Digit Dataset (about 10 MB of recordings, CC BY-SA 4.0):

    git clone https://github.com/Jakobovski/free-spoken-digit-dataset
    python examples/make_spoken_digits.py free-spoken-digit-dataset/recordings spoken_digits.npz
    python examples/spoken_digits.py --data spoken_digits.npz
"""


class SpeechNet(nn.Module):
    """Two recurrent layers of leaky integrate-and-fire neurons and a leaky readout, averaged over time."""

    def __init__(self, hidden: int = 128, leak: float = 0.95) -> None:
        super().__init__()
        surrogate = snn.fast_sigmoid(25.0)
        self.input1, self.layer1 = nn.Linear(40, hidden), snn.RLIF(hidden, leak=leak, surrogate=surrogate)
        self.input2, self.layer2 = nn.Linear(hidden, hidden), snn.RLIF(hidden, leak=leak, surrogate=surrogate)
        self.output, self.readout = nn.Linear(hidden, 10), snn.LI(10, leak=leak)

    def forward(self, spikes: torch.Tensor) -> torch.Tensor:
        """Returns scores [batch, 10] for spikes [time, batch, 40]."""
        state1 = state2 = state3 = None
        total = spikes.new_zeros(spikes.shape[1], 10)
        for x in spikes:
            s1, state1 = self.layer1(self.input1(x), state1)
            s2, state2 = self.layer2(self.input2(s1), state2)
            score, state3 = self.readout(self.output(s2), state3)
            total = total + score
        return total / spikes.shape[0]


@dataclass(frozen=True)
class Speech:
    """Features [examples, 100, 40] as spike probabilities, and digits, of one half of the data."""

    features: torch.Tensor
    digits: torch.Tensor


def load(path: Path, limit: int | None) -> tuple[Speech, Speech]:
    """Returns (training, test): takes 0 to 4 of every speaker and digit are the test, the usual split."""
    with np.load(path) as data:
        features = torch.from_numpy(data["features"]).float() / 255.0
        digits = torch.from_numpy(data["digit"]).long()
        test = torch.from_numpy(data["take"]) < 5
    return tuple(Speech(features[part][:limit], digits[part][:limit]) for part in (~test, test))  # type: ignore[return-value]


def spikes_of(features: torch.Tensor, generator: torch.Generator) -> torch.Tensor:
    """Returns Bernoulli spikes [time, batch, 40] for probabilities [batch, time, 40]."""
    return torch.bernoulli(features, generator=generator).transpose(0, 1)


def train_epoch(
    net: nn.Module, data: Speech, optimizer: torch.optim.Optimizer, batch: int, generator: torch.Generator
) -> None:
    """One pass over the training data."""
    net.train()
    for chosen in torch.split(torch.randperm(len(data.digits), generator=generator), batch):
        optimizer.zero_grad()
        functional.cross_entropy(net(spikes_of(data.features[chosen], generator)), data.digits[chosen]).backward()
        optimizer.step()


def bytes_for_backward(net: nn.Module, data: Speech, batch: int) -> int:
    """Returns the bytes that one batch holds between forward and backward."""
    net.train()
    spikes, digits = spikes_of(data.features[:batch], torch.Generator().manual_seed(0)), data.digits[:batch]
    return count_held(lambda: functional.cross_entropy(net(spikes), digits))


def accuracy(net: nn.Module, data: Speech, seed: int) -> float:
    """Returns the share of recordings recognised."""
    net.eval()
    with torch.no_grad():
        scores = net(spikes_of(data.features, torch.Generator().manual_seed(seed)))
    return float((scores.argmax(1) == data.digits).float().mean())


def main(argv: Sequence[str] | None = None) -> float | None:
    """Trains and returns the test accuracy; None where no data was given."""
    parser = argparse.ArgumentParser(description="Spoken digits with two recurrent spiking layers.")
    parser.add_argument("--data", type=Path, help="npz file of make_spoken_digits.py")
    parser.add_argument("--bptt", action="store_true", help="ordinary backpropagation through time, not converted")
    parser.add_argument("--epochs", type=int, default=12)
    parser.add_argument("--hidden", type=int, default=128)
    parser.add_argument("--batch", type=int, default=64)
    parser.add_argument("--limit", type=int, help="use only so many recordings of each half")
    parser.add_argument("--seed", type=int, default=0)
    options = parser.parse_args(argv)
    if options.data is None:
        print(HOW_TO_GET_THE_DATA, end="")
        return None
    training, test = load(options.data, options.limit)
    torch.manual_seed(options.seed)
    model = SpeechNet(options.hidden)
    net: nn.Module = model if options.bptt else tracecompile.convert(model)
    optimizer = torch.optim.Adam(model.parameters(), lr=2e-3)
    generator = torch.Generator().manual_seed(options.seed)
    result = 0.0
    for epoch in range(options.epochs):
        start = time.perf_counter()
        train_epoch(net, training, optimizer, options.batch, generator)
        seconds = time.perf_counter() - start
        result = accuracy(net, test, options.seed)
        print(f"epoch {epoch + 1:2}: test accuracy {result:.3f}, {seconds:.1f} s")
    held = bytes_for_backward(net, training, options.batch)
    print(f"{held / 1e6:.2f} MB held for backward at {training.features.shape[1]} time steps")
    return result


if __name__ == "__main__":
    main()
