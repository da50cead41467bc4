"""Sequences of several lengths in one batch: padded, masked, and every sample as if it were alone.

    python examples/ragged.py

Recordings of 10 to 40 steps in which one of four groups of channels fires more often than the others. They are padded
to the longest of their batch, and the model is given their lengths; three ways to read it are shown: the mean over the
valid steps, the last valid step, and a target for every step with an index that the loss ignores.
"""

from __future__ import annotations

import argparse
from collections.abc import Sequence

import torch
from torch import Tensor, nn
from torch.nn import functional
from torch.nn.utils.rnn import pad_sequence

import tracecompile
import tracecompile.nn as snn

CLASSES, CHANNELS = 4, 16
IGNORED = -100
"""What cross_entropy takes for no target."""


class RaggedNet(nn.Module):
    """Recurrent neurons and a leaky readout over padded sequences.

    Padding comes behind the end of a sample, so that the steps before it know nothing of it: a mask where the result
    is read is all that is needed.
    """

    def __init__(self, hidden: int = 32, read: str = "mean") -> None:
        super().__init__()
        self.read = read
        self.below, self.neurons = nn.Linear(CHANNELS, hidden), snn.RLIF(hidden)
        self.above, self.readout = nn.Linear(hidden, CLASSES), snn.LI(CLASSES)

    def forward(self, spikes: Tensor, lengths: Tensor) -> Tensor:
        """Returns scores, [batch, classes], or [time, batch, classes] for every step.

        Args:
            spikes: [time, batch, channels], zero behind the end of a sample.
            lengths: [batch], whole numbers.
        """
        state, last, scores = None, None, []
        for x in spikes:
            fired, state = self.neurons(self.below(x), state)
            score, last = self.readout(self.above(fired), last)
            scores.append(score)
        each = torch.stack(scores)
        if self.read == "last":
            return each[lengths - 1, torch.arange(each.shape[1], device=each.device)]
        if self.read == "mean":
            valid = valid_steps(spikes, lengths).to(each).unsqueeze(2)
            return (each * valid).sum(0) / lengths.to(each).unsqueeze(1)
        return each


def valid_steps(spikes: Tensor, lengths: Tensor) -> Tensor:
    """Returns which steps are no padding, [time, batch]."""
    return torch.arange(spikes.shape[0], device=spikes.device)[:, None] < lengths


def recordings(count: int) -> tuple[list[Tensor], Tensor]:
    """Draws recordings, [steps, channels] each of a length of its own, and their classes."""
    labels = torch.randint(CLASSES, (count,))
    found = []
    for label in labels.tolist():
        rates = torch.full((CHANNELS,), 0.1)
        rates[label * CHANNELS // CLASSES : (label + 1) * CHANNELS // CLASSES] = 0.4
        found.append(torch.bernoulli(rates.expand(int(torch.randint(10, 41, ())), CHANNELS)))
    return found, labels


def batch_of(sequences: Sequence[Tensor]) -> tuple[Tensor, Tensor]:
    """Returns padded sequences, [time, batch, channels], and their lengths."""
    return pad_sequence(list(sequences)), torch.tensor([len(each) for each in sequences])


def loss_of(scores: Tensor, labels: Tensor, valid: Tensor) -> Tensor:
    """Returns the loss of scores per sample, or of those of every step where padding has no target."""
    if scores.dim() == 2:
        return functional.cross_entropy(scores, labels)
    targets = labels.expand(valid.shape).masked_fill(~valid, IGNORED)
    return functional.cross_entropy(scores.flatten(0, 1), targets.flatten(), ignore_index=IGNORED)


def main(argv: Sequence[str] | None = None) -> dict[str, float]:
    """Trains the network as it is read in three ways; returns what came of each."""
    parser = argparse.ArgumentParser(description="Train a converted network on padded sequences.")
    parser.add_argument("--batches", type=int, default=30)
    parser.add_argument("--batch", type=int, default=32)
    parser.add_argument("--hidden", type=int, default=32)
    parser.add_argument("--seed", type=int, default=0)
    options = parser.parse_args(argv)
    results = {}
    for read in ("mean", "last", "each"):
        torch.manual_seed(options.seed)
        model = RaggedNet(options.hidden, read)
        net = tracecompile.convert(model)
        optimizer = torch.optim.Adam(model.parameters(), lr=1e-2)
        for _ in range(options.batches):
            sequences, labels = recordings(options.batch)
            spikes, lengths = batch_of(sequences)
            optimizer.zero_grad()
            loss_of(net(spikes, lengths), labels, valid_steps(spikes, lengths)).backward()
            optimizer.step()

        sequences, labels = recordings(8 * options.batch)
        spikes, lengths = batch_of(sequences)
        with torch.no_grad():
            scores = net(spikes, lengths)
            alone = [net(each.unsqueeze(1), torch.tensor([len(each)])) for each in sequences[:8]]
        if read == "each":
            same = [torch.allclose(scores[: len(each), i], each[:, 0], atol=1e-5) for i, each in enumerate(alone)]
            scores = (scores * valid_steps(spikes, lengths).unsqueeze(2)).sum(0)
        else:
            same = [torch.allclose(scores[i], each[0], atol=1e-5) for i, each in enumerate(alone)]
        results[read] = float((scores.argmax(1) == labels).float().mean())
        print(
            f"{read}: test accuracy {results[read]:.3f}; every sample as if it were alone: {all(same)}",
            flush=True,
        )
    return results


if __name__ == "__main__":
    main()
