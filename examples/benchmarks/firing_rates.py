"""What a compiled training step takes where neurons fire more or less often: products with spikes are sums over them.

    python examples/benchmarks/firing_rates.py
    python examples/benchmarks/firing_rates.py --hidden 1024 --thresholds 1 0.2 --repeats 9

A dense network whose thresholds are set higher or lower. All turns of a threshold take turns in one run, and medians
count; ratios are to the model's own inference without gradients. The first turns, which wait for the compiler, are left
out.
"""

from __future__ import annotations

import argparse
import statistics
import time
from collections.abc import Callable

import torch
from torch import nn

import tracecompile
import tracecompile.nn as snn

INPUTS, OUTPUTS = 128, 10


class Net(nn.Module):
    """Two dense spiking layers and a linear readout; remembers how often its neurons have fired."""

    def __init__(self, hidden: int, threshold: float) -> None:
        super().__init__()
        surrogate = snn.fast_sigmoid(25.0)
        self.fc1, self.lif1 = nn.Linear(INPUTS, hidden), snn.LIF(leak=0.9, threshold=threshold, surrogate=surrogate)
        self.fc2, self.lif2 = nn.Linear(hidden, hidden), snn.LIF(leak=0.9, threshold=threshold, surrogate=surrogate)
        self.readout = nn.Linear(hidden, OUTPUTS)

    def forward(self, x: torch.Tensor) -> tuple[torch.Tensor, torch.Tensor]:
        """Returns the scores [batch, 10] of spikes [time, batch, 128], and the mean rate of both layers."""
        state1 = state2 = None
        total, fired = 0.0, 0.0
        for x_t in x:
            spikes1, state1 = self.lif1(self.fc1(x_t), state1)
            spikes2, state2 = self.lif2(self.fc2(spikes1), state2)
            total = total + self.readout(spikes2)
            fired = fired + (spikes1.mean() + spikes2.mean()) / 2
        return total / x.shape[0], fired / x.shape[0]


def trained(net: nn.Module, x: torch.Tensor) -> Callable[[], None]:
    """Returns a training step."""

    def turn() -> None:
        net.zero_grad(set_to_none=True)
        net(x)[0].square().mean().backward()

    return turn


def row(arguments: argparse.Namespace, threshold: float) -> list[str]:
    """Returns the rate at a threshold, the time of an inference, and what training takes over it."""
    torch.manual_seed(0)
    model, x = Net(arguments.hidden, threshold), (torch.rand(arguments.steps, arguments.samples, INPUTS) < 0.1).float()

    def inference() -> None:
        with torch.no_grad():
            model(x)

    turns = {"inference": inference, "bptt": trained(model, x)}
    for name, options in (("bins=4", {"bins": 4}), ("exact", {"rule": "exact"})):
        turns[name] = trained(tracecompile.convert(model, x, backend="inductor", **options), x)
    times: dict[str, list[float]] = {name: [] for name in turns}
    for turn in turns.values():
        for _ in range(2):
            turn()
    for _ in range(arguments.repeats):
        for name, turn in turns.items():
            start = time.perf_counter()
            turn()
            times[name].append(time.perf_counter() - start)
    found = {name: statistics.median(each) for name, each in times.items()}
    with torch.no_grad():
        rate = float(model(x)[1])
    base = found.pop("inference")
    return [f"{threshold:g}", f"{rate:.3f}", f"{base * 1e3:.0f} ms", *(f"{each / base:.2f}" for each in found.values())]


def main() -> None:
    """Prints the table."""
    parser = argparse.ArgumentParser(description=__doc__.split("\n\n")[0])
    parser.add_argument("--hidden", type=int, default=512)
    parser.add_argument("--samples", type=int, default=32)
    parser.add_argument("--steps", type=int, default=256)
    parser.add_argument("--thresholds", type=float, nargs="+", default=[1.0, 0.5, 0.2, 0.1, 0.05])
    parser.add_argument("--repeats", type=int, default=7)
    arguments = parser.parse_args()
    print("| threshold | rate | inference | bptt | `bins=4` | `exact` |\n|---|---|---|---|---|---|")
    for threshold in arguments.thresholds:
        print("| " + " | ".join(row(arguments, threshold)) + " |", flush=True)


if __name__ == "__main__":
    main()
