"""Events of a camera, made into frames, through a DataLoader whose batches are padded.

    python examples/event_frames.py

The events are as tonic gives them: a structured array with ``x``, ``y``, ``t`` (microseconds) and ``p``. Here they are
made up, a spot that moves in one of four directions; with tonic installed, ``ToFrame`` takes the place of ``frames_of``
and any of its data sets that of ``Spots``.
"""

from __future__ import annotations

import argparse
from collections.abc import Sequence

import numpy as np
import torch
from torch import Tensor, nn
from torch.nn import functional
from torch.nn.utils.rnn import pad_sequence
from torch.utils.data import DataLoader, Dataset

import tracecompile
import tracecompile.nn as snn

SIDE, WINDOW = 12, 1000
EVENT = np.dtype([("x", "<i2"), ("y", "<i2"), ("t", "<i8"), ("p", "?")])
DIRECTIONS = ((1, 0), (-1, 0), (0, 1), (0, -1))


def frames_of(events: np.ndarray) -> Tensor:
    """Returns counts of events per window of time, polarity and pixel: [time, 2, side, side]."""
    bins = (events["t"] // WINDOW).astype(int)
    frames = torch.zeros(int(bins.max()) + 1, 2, SIDE, SIDE)
    places = tuple(torch.as_tensor(each.astype(np.int64)) for each in (bins, events["p"], events["y"], events["x"]))
    return frames.index_put_(places, torch.ones(len(events)), accumulate=True)


class Spots(Dataset[tuple[Tensor, int]]):
    """Recordings of 12 to 24 windows of a spot that moves."""

    def __init__(self, count: int, seed: int = 0) -> None:
        self.count, self.seed = count, seed

    def __len__(self) -> int:
        return self.count

    def __getitem__(self, index: int) -> tuple[Tensor, int]:
        generator = np.random.default_rng((self.seed, index))
        label, windows = index % len(DIRECTIONS), int(generator.integers(12, 25))
        time = np.sort(generator.integers(0, windows * WINDOW, 12 * windows))
        time[-1] = windows * WINDOW - 1
        start, way = generator.integers(0, SIDE, 2), np.array(DIRECTIONS[label])
        place = (start + way * (time // WINDOW)[:, None] + generator.integers(-1, 2, (len(time), 2))) % SIDE
        events = np.empty(len(time), EVENT)
        events["x"], events["y"], events["t"], events["p"] = (
            place[:, 0],
            place[:, 1],
            time,
            generator.random(len(time)) > 0.5,
        )
        return frames_of(events), label


def padded(samples: list[tuple[Tensor, int]]) -> tuple[Tensor, Tensor, Tensor]:
    """Returns frames [time, batch, ...] padded behind the end, lengths and labels."""
    frames, labels = zip(*samples, strict=True)
    return pad_sequence(list(frames)), torch.tensor([len(each) for each in frames]), torch.tensor(labels)


class Net(nn.Module):
    """Convolution, spiking neurons, a recurrent layer, and the mean of a leaky readout over the valid steps."""

    def __init__(self) -> None:
        super().__init__()
        self.convolution, self.neurons = nn.Conv2d(2, 8, 3, stride=2, padding=1), snn.LIF()
        self.between, self.recurrent = nn.Linear(8 * (SIDE // 2) ** 2, 48), snn.RLIF(48)
        self.output, self.readout = nn.Linear(48, len(DIRECTIONS)), snn.LI(len(DIRECTIONS))

    def forward(self, frames: Tensor, lengths: Tensor) -> Tensor:
        below = above = last = None
        scores = []
        for frame in frames:
            spikes, below = self.neurons(3 * self.convolution(frame), below)
            spikes, above = self.recurrent(3 * self.between(spikes.flatten(1)), above)
            score, last = self.readout(self.output(spikes), last)
            scores.append(score)
        each = torch.stack(scores)
        valid = (torch.arange(frames.shape[0])[:, None] < lengths).to(each).unsqueeze(2)
        return (each * valid).sum(0) / lengths.to(each).unsqueeze(1)


def main(arguments: Sequence[str] | None = None) -> list[float]:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--epochs", type=int, default=8)
    parser.add_argument("--examples", type=int, default=256)
    parser.add_argument("--workers", type=int, default=0)
    options = parser.parse_args(arguments)
    torch.manual_seed(0)
    spots = Spots(options.examples)
    loader = DataLoader(spots, batch_size=32, shuffle=True, collate_fn=padded, num_workers=options.workers)
    net = tracecompile.convert(Net())
    optimizer = torch.optim.Adam(net.parameters(), lr=3e-3)
    losses = []
    for epoch in range(options.epochs):
        found = []
        for frames, lengths, labels in loader:
            optimizer.zero_grad()
            loss = functional.cross_entropy(net(frames, lengths), labels)
            loss.backward()
            optimizer.step()
            found.append(float(loss.detach()))
        losses.append(sum(found) / len(found))
        print(f"epoch {epoch + 1}: loss {losses[-1]:.3f}")
    return losses


if __name__ == "__main__":
    main()
