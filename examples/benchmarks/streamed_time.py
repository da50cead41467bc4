"""The time of one streamed step, in training and without gradients: eager, compiled, and looking ahead.

    python examples/benchmarks/streamed_time.py
    python examples/benchmarks/streamed_time.py --hidden 512 --samples 1 32 --lookahead 16 64

All rows take turns in one run, and the median counts. Times are processor time of this process, so that what else the
machine does counts little; ratios are to the eager stream. The first turns, which wait for the compiler, are left out.
"""

from __future__ import annotations

import argparse
import statistics
import time
from collections.abc import Callable, Sequence

import torch
from torch import nn

import tracecompile
import tracecompile.nn as snn

INPUTS, OUTPUTS = 64, 10
Turn = Callable[[], None]


class Net(nn.Module):
    """Two recurrent layers and a linear readout."""

    def __init__(self, hidden: int) -> None:
        super().__init__()
        self.fc1, self.rlif1 = nn.Linear(INPUTS, hidden), snn.RLIF(hidden)
        self.fc2, self.rlif2 = nn.Linear(hidden, hidden), snn.RLIF(hidden)
        self.readout = nn.Linear(hidden, OUTPUTS)

    def forward(self, x: torch.Tensor) -> torch.Tensor:
        """Returns the scores of every step, [time, batch, 10]."""
        state1 = state2 = None
        scores = []
        for x_t in x:
            spikes, state1 = self.rlif1(self.fc1(x_t), state1)
            spikes, state2 = self.rlif2(self.fc2(spikes), state2)
            scores.append(self.readout(spikes))
        return torch.stack(scores)


def trained(net: tracecompile.TracedModule, x: Sequence[torch.Tensor], lookahead: int) -> Turn:
    """Returns a turn of training: one window, and its backward pass."""

    def turn() -> None:
        net.reset()
        torch.stack(list(net.stream(x, lookahead=lookahead))).square().mean().backward()

    return turn


def run(net: tracecompile.TracedModule, x: Sequence[torch.Tensor], lookahead: int) -> Turn:
    """Returns a turn without gradients."""

    def turn() -> None:
        net.reset()
        with torch.no_grad():
            for _ in net.stream(x, lookahead=lookahead):
                pass

    return turn


def medians(turns: dict[str, Turn], repeats: int) -> dict[str, float]:
    """Returns the median time of each turn, in seconds."""
    found: dict[str, list[float]] = {name: [] for name in turns}
    for turn in turns.values():
        for _ in range(2):
            turn()
    for _ in range(repeats):
        for name, turn in turns.items():
            start = time.process_time()
            turn()
            found[name].append(time.process_time() - start)
    return {name: statistics.median(times) for name, times in found.items()}


def main(argv: Sequence[str] | None = None) -> dict[str, dict[str, float]]:
    """Prints a table for each number of samples, and returns the ratios to the eager stream."""
    parser = argparse.ArgumentParser(description="Time of one streamed step of a recurrent network.")
    parser.add_argument("--hidden", type=int, default=256)
    parser.add_argument("--samples", type=int, nargs="+", default=[1, 16])
    parser.add_argument("--steps", type=int, default=200, help="of a stream, and of a window in training")
    parser.add_argument("--lookahead", type=int, nargs="+", default=[16, 32])
    parser.add_argument("--repeats", type=int, default=9)
    parser.add_argument("--backends", nargs="+", default=["eager", "inductor"], choices=["eager", "inductor"])
    options = parser.parse_args(argv)
    torch.set_num_threads(1)
    found = {}
    for samples in options.samples:
        torch.manual_seed(0)
        model = Net(options.hidden)
        x = list((torch.rand(options.steps, samples, INPUTS) < 0.3).float())
        nets = {name: tracecompile.convert(model, torch.stack(x[:4]), backend=name) for name in options.backends}
        for title, made in (("training", trained), ("without gradients", run)):
            rows = [(name, ahead) for ahead in (1, *options.lookahead) for name in nets]
            turns = {
                name if ahead == 1 else f"{name}, lookahead={ahead}": made(nets[name], x, ahead) for name, ahead in rows
            }
            times = medians(turns, options.repeats)
            first = next(iter(times.values()))
            print(f"{options.hidden} neurons a layer, {samples} samples, {title}")
            for name, value in times.items():
                print(f"  {name:<24} {value / options.steps * 1e6:7.0f} us a step   {value / first:.2f}", flush=True)
            found[f"{samples}, {title}"] = {name: value / first for name, value in times.items()}
    return found


if __name__ == "__main__":
    main()
