"""The peak memory of a training process does not depend on the number of time steps, if the input is streamed.

    python examples/benchmarks/streamed_memory.py

Every length runs in a process of its own: spikes are made one step at a time and streamed through a converted network,
and the weights are updated every ``--segment`` steps while the stream goes on. (What would grow within a segment is the
loss itself, a few kilobytes of graph for each step that it sums.)
"""

from __future__ import annotations

import argparse
import itertools
import json
import subprocess
import sys
from collections.abc import Iterator, Sequence

import torch
from torch import nn

import tracecompile
import tracecompile.nn as snn
from tracecompile.diagnostics.memory import peak_resident_bytes

BATCH, INPUTS, HIDDEN = 32, 128, 256


class Net(nn.Module):
    def __init__(self, hidden: int) -> None:
        super().__init__()
        self.fc1, self.lif1 = nn.Linear(INPUTS, hidden), snn.RLIF(hidden)
        self.fc2, self.lif2 = nn.Linear(hidden, hidden), snn.LIF()
        self.readout = nn.Linear(hidden, 10)

    def forward(self, x: torch.Tensor) -> torch.Tensor:
        """Returns the scores of every step, [time, batch, 10]."""
        state1 = state2 = None
        scores = []
        for x_t in x:
            spikes, state1 = self.lif1(self.fc1(x_t), state1)
            spikes, state2 = self.lif2(self.fc2(spikes), state2)
            scores.append(self.readout(spikes))
        return torch.stack(scores)


def spikes(steps: int) -> Iterator[torch.Tensor]:
    generator = torch.Generator().manual_seed(0)
    for _ in range(steps):
        yield (torch.rand(BATCH, INPUTS, generator=generator) < 0.3).float()


def train(steps: int, hidden: int, segment: int) -> int:
    """Trains on one streamed sequence and returns the peak memory of this process, in bytes."""
    torch.manual_seed(0)
    model = Net(hidden)
    net = tracecompile.convert(model, torch.zeros(4, BATCH, INPUTS))
    optimizer = torch.optim.Adam(model.parameters())
    stream = net.stream(spikes(steps))
    while outputs := list(itertools.islice(stream, segment)):
        loss = torch.stack(outputs).square().mean()
        optimizer.zero_grad()
        loss.backward()
        optimizer.step()
    return peak_resident_bytes()


def main(argv: Sequence[str] | None = None) -> dict[int, int]:
    """Prints the peak of a process for each length, and returns it."""
    parser = argparse.ArgumentParser(description="Peak memory of training on streams of several lengths.")
    parser.add_argument("--steps", type=int, nargs="+", default=[100, 10_000])
    parser.add_argument("--hidden", type=int, default=HIDDEN)
    parser.add_argument("--segment", type=int, default=50)
    parser.add_argument("--here", action="store_true", help="train in this process, and print bytes alone")
    options = parser.parse_args(argv)
    found = {}
    for steps in options.steps:
        if options.here:
            found[steps] = train(steps, options.hidden, options.segment)
            print(json.dumps(found[steps]))
            continue
        size = ["--hidden", str(options.hidden), "--segment", str(options.segment)]
        command = [sys.executable, __file__, "--here", "--steps", str(steps), *size]
        done = subprocess.run(command, stdout=subprocess.PIPE, text=True, check=True)
        found[steps] = int(json.loads(done.stdout))
        print(f"{steps:>8,} time steps: peak {found[steps] / 1e6:,.1f} MB", flush=True)
    return found


if __name__ == "__main__":
    main()
