"""Spoken digits: two recurrent spiking layers, trained in constant memory or, for comparison, the ordinary ways.

    python examples/spoken_digits.py --data spoken_digits.npz
    python examples/spoken_digits.py --data spoken_digits.npz --rule exact
    python examples/spoken_digits.py --data spoken_digits.npz --rule bptt
    python examples/spoken_digits.py --data spoken_digits.npz --rule truncated --window 10

Each recording is 100 frames of 10 ms with 40 log-mel channels; every channel spikes with a probability that is its
energy. ``make_spoken_digits.py`` makes the data file from the Free Spoken Digit Dataset, and ``spoken_digits_table.py``
a table of what ``--json`` wrote of several runs.
"""

from __future__ import annotations

import argparse
import json
import statistics
import time
from collections.abc import Callable, Sequence
from dataclasses import asdict, dataclass, field
from pathlib import Path

import numpy as np
import torch
from torch import Tensor, nn
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

COMPARED = 20
"""Updates whose losses are shown and kept."""
States = tuple[snn.RLIFState | None, snn.RLIFState | None, Tensor | None]
Forward = Callable[[Tensor], Tensor]


class SpeechNet(nn.Module):
    """Two recurrent layers of leaky integrate-and-fire neurons and a leaky readout, averaged over time."""

    def __init__(self, hidden: int = 128, leak: float = 0.95) -> None:
        super().__init__()
        surrogate = snn.fast_sigmoid(25.0)
        self.input1, self.layer1 = nn.Linear(40, hidden), snn.RLIF(hidden, leak=leak, surrogate=surrogate)
        self.input2, self.layer2 = nn.Linear(hidden, hidden), snn.RLIF(hidden, leak=leak, surrogate=surrogate)
        self.output, self.readout = nn.Linear(hidden, 10), snn.LI(10, leak=leak)

    def step(self, x: Tensor, states: States) -> tuple[Tensor, States]:
        """Returns the scores [batch, 10] of one step for spikes [batch, 40], and the next states."""
        state1, state2, state3 = states
        s1, state1 = self.layer1(self.input1(x), state1)
        s2, state2 = self.layer2(self.input2(s1), state2)
        score, state3 = self.readout(self.output(s2), state3)
        return score, (state1, state2, state3)

    def forward(self, spikes: Tensor) -> Tensor:
        """Returns scores [batch, 10] for spikes [time, batch, 40]."""
        states: States = (None, None, None)
        total = spikes.new_zeros(spikes.shape[1], 10)
        for x in spikes:
            score, states = self.step(x, states)
            total = total + score
        return total / spikes.shape[0]


def truncated(model: SpeechNet, spikes: Tensor, window: int) -> Tensor:
    """Truncated backpropagation through time: the model's scores; no gradient goes from a window to the one before."""
    states: States = (None, None, None)
    total = spikes.new_zeros(spikes.shape[1], 10)
    for step, x in enumerate(spikes):
        if step % window == 0 and step > 0:
            first, second, readout = states
            first, second = (snn.RLIFState(*(part.detach() for part in state)) for state in (first, second))
            states = first, second, readout.detach()
        score, states = model.step(x, states)
        total = total + score
    return total / spikes.shape[0]


@dataclass(frozen=True)
class Speech:
    """Features [examples, 100, 40] as spike probabilities, and digits, of one half of the data."""

    features: Tensor
    digits: Tensor


def load(path: Path, limit: int | None) -> tuple[Speech, Speech]:
    """Returns (training, test): takes 0 to 4 of every speaker and digit are the test, the usual split."""
    with np.load(path) as data:
        features = torch.from_numpy(data["features"]).float() / 255.0
        digits = torch.from_numpy(data["digit"]).long()
        test = torch.from_numpy(data["take"]) < 5
    return tuple(Speech(features[part][:limit], digits[part][:limit]) for part in (~test, test))  # type: ignore[return-value]


def spikes_of(features: Tensor, generator: torch.Generator) -> Tensor:
    """Returns Bernoulli spikes [time, batch, 40] for probabilities [batch, time, 40]."""
    return torch.bernoulli(features, generator=generator).transpose(0, 1)


@dataclass
class Run:
    """What one run came to.

    Attributes:
        rule: Where its gradients come from, as the table has it.
        seed: Of the weights, the order of the recordings and their spikes.
        losses: Of the first updates.
        accuracies: Share of the test recordings that are recognised, after every epoch.
        seconds: Of an epoch of training, the median.
        held: Bytes that a batch holds between forward and backward.
    """

    rule: str
    seed: int
    losses: list[float] = field(default_factory=list)
    accuracies: list[float] = field(default_factory=list)
    seconds: float = 0.0
    held: int = 0


def named(options: argparse.Namespace) -> str:
    """Returns what the rule of a run is called."""
    extra = {"measured": f", bins={options.bins}", "truncated": f", {options.window} steps"}
    return f"{options.rule}{extra.get(options.rule, '')}"


def forward_by(rule: str, model: SpeechNet, options: argparse.Namespace) -> Forward:
    """Returns the model with the gradients of a rule."""
    if rule == "bptt":
        return model
    if rule == "truncated":
        return lambda spikes: truncated(model, spikes, options.window)
    bins = {"bins": options.bins} if rule == "measured" else {}
    return tracecompile.convert(model, rule=rule, backend=options.backend, **bins)


def train_epoch(
    net: Forward, data: Speech, optimizer: torch.optim.Optimizer, batch: int, generator: torch.Generator
) -> list[float]:
    """One pass over the training data; returns the loss of every update."""
    losses = []
    for chosen in torch.split(torch.randperm(len(data.digits), generator=generator), batch):
        optimizer.zero_grad()
        loss = functional.cross_entropy(net(spikes_of(data.features[chosen], generator)), data.digits[chosen])
        loss.backward()
        optimizer.step()
        losses.append(loss.item())
    return losses


def bytes_for_backward(net: Forward, data: Speech, batch: int) -> int:
    """Returns the bytes that one batch holds between forward and backward."""
    spikes, digits = spikes_of(data.features[:batch], torch.Generator().manual_seed(0)), data.digits[:batch]
    return count_held(lambda: functional.cross_entropy(net(spikes), digits))


def accuracy(net: Forward, data: Speech, seed: int) -> float:
    """Returns the share of recordings recognised."""
    with torch.no_grad():
        scores = net(spikes_of(data.features, torch.Generator().manual_seed(seed)))
    return float((scores.argmax(1) == data.digits).float().mean())


def run(options: argparse.Namespace) -> Run:
    """Trains a fresh network, says how it goes, and writes it down after every epoch."""
    training, test = load(options.data, options.limit)
    if options.double:
        training, test = (Speech(data.features.double(), data.digits) for data in (training, test))
    torch.manual_seed(options.seed)
    model = SpeechNet(options.hidden)
    if options.double:
        model.double()
    net = forward_by(options.rule, model, options)
    optimizer = torch.optim.Adam(model.parameters(), lr=2e-3)
    generator = torch.Generator().manual_seed(options.seed)
    found, seconds = Run(named(options), options.seed), []
    for epoch in range(1, options.epochs + 1):
        start = time.perf_counter()
        losses = train_epoch(net, training, optimizer, options.batch, generator)
        seconds.append(time.perf_counter() - start)
        for loss in losses[: COMPARED - len(found.losses)]:
            found.losses.append(loss)
            print(f"update {len(found.losses):2}: loss {loss:.6f}")
        found.accuracies.append(accuracy(net, test, options.seed))
        print(f"epoch {epoch:2}: test accuracy {found.accuracies[-1]:.3f}, {seconds[-1]:.1f} s", flush=True)
        found.seconds = statistics.median(seconds)
        found.held = found.held or bytes_for_backward(net, training, options.batch)
        if options.json is not None:
            options.json.write_text(json.dumps(asdict(found)))
    print(f"{found.held / 1e6:.2f} MB held for backward at {training.features.shape[1]} time steps")
    return found


def main(argv: Sequence[str] | None = None) -> Run | None:
    """Trains and returns what came of it; None where no data was given."""
    parser = argparse.ArgumentParser(description="Spoken digits with two recurrent spiking layers.")
    parser.add_argument("--data", type=Path, help="npz file of make_spoken_digits.py")
    parser.add_argument("--rule", choices=["bptt", "exact", "measured", "truncated"], default="measured")
    parser.add_argument("--bins", type=int, default=4, help="time bins of the measured rule")
    parser.add_argument("--window", type=int, default=10, help="time steps of a window of truncated backpropagation")
    parser.add_argument("--backend", default="auto", help="what runs a converted network")
    parser.add_argument("--double", action="store_true", help="compute in float64")
    parser.add_argument("--epochs", type=int, default=12)
    parser.add_argument("--hidden", type=int, default=128)
    parser.add_argument("--batch", type=int, default=64)
    parser.add_argument("--limit", type=int, help="use only so many recordings of each half")
    parser.add_argument("--seed", type=int, default=0)
    parser.add_argument("--json", type=Path, help="file to write what comes of it into")
    options = parser.parse_args(argv)
    if options.data is None:
        print(HOW_TO_GET_THE_DATA, end="")
        return None
    return run(options)


if __name__ == "__main__":
    torch.set_num_threads(1)
    main()
