"""The networks that ``fidelity.py`` measures, their data, and their training before the measurement."""

from __future__ import annotations

import itertools
from collections.abc import Callable
from pathlib import Path

import numpy as np
import torch
from spoken_digits import Speech, spikes_of
from torch import Tensor, nn
from torch.nn import functional

import tracecompile.nn as snn

Forward = Callable[[Tensor], Tensor]


class RecurrentNet(nn.Module):
    """Two recurrent layers with a "linear", "leaky" or "spiking" readout; scores of every step, [time, batch, 10]."""

    def __init__(self, hidden: int = 128, leak: float = 0.95, readout: str = "linear") -> None:
        super().__init__()
        surrogate = snn.fast_sigmoid(25.0)
        self.input1, self.layer1 = nn.Linear(40, hidden), snn.RLIF(hidden, leak=leak, surrogate=surrogate)
        self.input2, self.layer2 = nn.Linear(hidden, hidden), snn.RLIF(hidden, leak=leak, surrogate=surrogate)
        self.output = nn.Linear(hidden, 10)
        self.readout: nn.Module | None = None
        if readout == "leaky":
            self.readout = snn.LI(10, leak=leak)
        elif readout == "spiking":
            self.readout = snn.LIF(10, leak=leak, surrogate=surrogate)
            with torch.no_grad():  # so that it fires from the start
                self.output.weight.mul_(2.0)
                self.output.bias.fill_(0.03)

    def forward(self, spikes: Tensor) -> Tensor:
        """Returns the scores for spikes [time, batch, 40]."""
        state1 = state2 = state3 = None
        scores = []
        for x in spikes:
            s1, state1 = self.layer1(self.input1(x), state1)
            s2, state2 = self.layer2(self.input2(s1), state2)
            score = self.output(s2)
            if self.readout is not None:
                score, state3 = self.readout(score, state3)
            scores.append(score)
        return torch.stack(scores)


class DeepNet(nn.Module):
    """Feed-forward layers, the last of them a linear readout; scores of every step, [time, batch, 10]."""

    def __init__(self, pixels: int, width: int, layers: int, detach_reset: bool) -> None:
        super().__init__()
        widths = [pixels, *[width] * (layers - 1)]
        self.synapses = nn.ModuleList([nn.Linear(a, b) for a, b in itertools.pairwise(widths)])
        surrogate = snn.sigmoid(4.0)
        self.neurons = nn.ModuleList(
            [snn.LIF(leak=0.9, detach_reset=detach_reset, surrogate=surrogate) for _ in self.synapses]
        )
        self.output = nn.Linear(width, 10)

    def forward(self, spikes: Tensor) -> Tensor:
        """Returns the scores for spikes [time, batch, pixels]."""
        states: list[Tensor | None] = [None] * len(self.neurons)
        scores = []
        for x in spikes:
            signal = x
            for index, (synapse, neuron) in enumerate(zip(self.synapses, self.neurons, strict=True)):
                signal, states[index] = neuron(synapse(signal), states[index])
            scores.append(self.output(signal))
        return torch.stack(scores)


def earliness_of_first_spikes(scores: Tensor) -> Tensor:
    """Returns 5 for an output that spikes at once, down to 0 for one that never does, [batch, classes]."""
    spikes = scores.detach()
    first = (spikes.cumsum(0) == 1) & (spikes > 0)
    earliness = torch.linspace(5.0, 0.0, len(scores)).reshape(-1, 1, 1)
    return (scores * first * earliness).sum(0)


READ: dict[str, Callable[[Tensor], Tensor]] = {
    "mean": lambda scores: scores.mean(0),
    "last step": lambda scores: scores[-1],
    "maximum": lambda scores: scores.amax(0),
    "rate": lambda scores: 10 * scores.mean(0),
    "first spike": earliness_of_first_spikes,
}
"""How the scores of all steps become those of the sequence."""


def loss_of(scores: Tensor, labels: Tensor, kind: str = "mean") -> Tensor:
    """Returns the cross-entropy of the scores [time, batch, classes], read as ``kind`` says."""
    return functional.cross_entropy(READ[kind](scores), labels)


def train_on_speech(
    forward: Forward,
    model: nn.Module,
    data: Speech,
    epochs: int,
    batch: int,
    seed: int,
    kind: str = "mean",
    anneal: bool = False,
) -> None:
    """Trains the model's parameters; ``forward`` gives the scores, and with them the gradients.

    With ``anneal`` the learning rate goes down to zero as a cosine, without it stays the same.
    """
    generator = torch.Generator().manual_seed(seed)
    optimizer = torch.optim.Adam(model.parameters(), lr=2e-3)
    updates = epochs * -(-len(data.digits) // batch)
    schedule = torch.optim.lr_scheduler.CosineAnnealingLR(optimizer, updates) if anneal else None
    for _ in range(epochs):
        for chosen in torch.split(torch.randperm(len(data.digits), generator=generator), batch):
            optimizer.zero_grad()
            loss_of(forward(spikes_of(data.features[chosen], generator)), data.digits[chosen], kind).backward()
            optimizer.step()
            if schedule is not None:
                schedule.step()


def load_images(path: Path, limit: int | None) -> tuple[Tensor, Tensor]:
    """Returns images [examples, pixels] as spike probabilities, and their labels."""
    with np.load(path) as data:
        images = torch.from_numpy(data["images"]).float().flatten(1) / 255.0
        labels = torch.from_numpy(data["labels"]).long()
    return images[:limit], labels[:limit]


def draw_images(images: Tensor, labels: Tensor, steps: int, batch: int, rng: torch.Generator) -> tuple[Tensor, Tensor]:
    """Returns rate-coded spikes [steps, batch, pixels] of random images, and their labels."""
    chosen = torch.randint(len(labels), (batch,), generator=rng)
    return torch.bernoulli(images[chosen].expand(steps, -1, -1), generator=rng), labels[chosen]
