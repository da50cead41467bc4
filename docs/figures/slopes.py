"""A trace and what is recovered of it; the rate of a neuron and the slopes that are measured while it runs.

python docs/figures/slopes.py
"""

from __future__ import annotations

import argparse
from collections.abc import Sequence
from pathlib import Path
from typing import Any

import torch
from style import BPTT, CONVERTED, GREY, axes_of, finish
from torch import Tensor, nn

import tracecompile
import tracecompile.nn as snn


class Neurons(nn.Module):
    """Neurons that each get a current of their own, and nothing else."""

    def __init__(self, currents: Tensor, leak: float) -> None:
        super().__init__()
        self.current = nn.Parameter(currents)
        self.neurons = snn.LIF(leak=leak, surrogate=snn.fast_sigmoid(10.0), detach_reset=False)

    def forward(self, x: Tensor) -> Tensor:
        state, total = None, 0.0
        for x_t in x:
            spikes, state = self.neurons(x_t * self.current, state)
            total = total + spikes
        return total / x.shape[0]


def main(arguments: Sequence[str] | None = None) -> dict[str, Any]:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--output", type=Path, default=Path(__file__).with_name("slopes.svg"))
    parser.add_argument("--steps", type=int, default=200)
    options = parser.parse_args(arguments)
    torch.manual_seed(0)
    figure, (traced, sloped) = axes_of(2)

    decay, rate, shown = 0.9, 0.3, 60
    spikes = torch.bernoulli(torch.full((shown,), rate))
    trace, traces = 0.0, []
    for spike in spikes:
        trace = decay * trace + float(spike)
        traces.append(trace)
    steps = torch.arange(1, shown + 1)
    recovered = torch.tensor(traces) * (1 - decay) / (1 - decay**steps)
    without = torch.tensor(traces) * (1 - decay)
    traced.vlines(steps[spikes > 0], 0, 0.06, color=GREY, lw=1)
    traced.plot(steps, without, color=GREY, lw=1, ls="--", label="trace, without the start")
    traced.plot(steps, recovered, color=CONVERTED, label="trace, with the start taken into account")
    traced.plot(steps, spikes.cumsum(0) / steps, color=BPTT, label="mean of the whole sequence (the default)")
    traced.axhline(rate, color=GREY, lw=0.8, ls=":")
    traced.set(
        xlabel="time step", ylabel="rate", ylim=(0, 1), title="what a trace knows of its input (rate 0.3, dotted)"
    )
    traced.legend(frameon=False)

    model = Neurons(torch.linspace(-0.05, 0.6, 41), leak=0.9)
    x = torch.ones(options.steps, 1, 1)
    net = tracecompile.convert(model, x, bins=1)
    rates = net(x)
    rates.sum().backward()
    slopes, currents = model.current.grad, model.current.detach()
    assert slopes is not None
    sloped.plot(currents, rates.detach()[0], color=GREY, lw=1, label="rate, as it was observed")
    for index in range(0, len(currents), 4):
        reach = torch.tensor([-0.03, 0.03])
        line = rates.detach()[0, index] + slopes[index] * reach
        sloped.plot(
            currents[index] + reach, line, color=CONVERTED, lw=2, label="" if index else "slope, as it was measured"
        )
    sloped.set(xlabel="constant current", ylabel="spikes per step", title=f"rate and slopes, {options.steps} steps")
    sloped.legend(frameon=False)
    finish(figure, options.output)
    return {"recovered": recovered, "without": without, "rates": rates.detach()[0], "slopes": slopes}


if __name__ == "__main__":
    main()
