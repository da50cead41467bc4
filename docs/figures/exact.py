"""The exact rule next to the others: what is held for backward, against the length of the sequence.

python docs/figures/exact.py
"""

from __future__ import annotations

import argparse
from collections.abc import Sequence
from functools import partial
from pathlib import Path
from typing import Any

import torch
from style import BPTT, CONVERTED, OTHER, axes_of, finish
from torch.nn import functional

import tracecompile
from tracecompile.demo.data import load_digits, spike_trains
from tracecompile.demo.network import DigitNet
from tracecompile.demo.run import BATCH
from tracecompile.diagnostics.held import count_held

COLOURS = {"through time": BPTT, "exact": OTHER, "measured, 4 bins": CONVERTED}


def _loss_of(way: Any, spikes: torch.Tensor, loss: Any) -> torch.Tensor:
    value: torch.Tensor = loss(way(spikes))
    return value


def main(arguments: Sequence[str] | None = None) -> dict[str, Any]:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--output", type=Path, default=Path(__file__).with_name("exact.svg"))
    parser.add_argument("--lengths", default="64,128,256,512,1024,2048")
    options = parser.parse_args(arguments)
    torch.set_num_threads(1)
    digits, model = load_digits(), DigitNet(seed=0)
    loss = partial(functional.cross_entropy, target=digits.labels[:BATCH])
    lengths = [int(each) for each in options.lengths.split(",")]
    ways: dict[str, torch.nn.Module] = {
        "through time": model,
        "exact": tracecompile.convert(model, rule="exact", backend="eager"),
        "measured, 4 bins": tracecompile.convert(model, backend="eager"),
    }
    costs: dict[str, list[int]] = {name: [] for name in ways}
    for steps in lengths:
        spikes = spike_trains(digits.images[:BATCH], steps, torch.Generator().manual_seed(steps))
        for name, way in ways.items():
            _loss_of(way, spikes, loss)  # what a capture leaves is no part of a step
            costs[name].append(count_held(partial(_loss_of, way, spikes, loss)))
            print(steps, name, costs[name][-1])
    figure, (memory,) = axes_of(1)
    for name, colour in COLOURS.items():
        memory.plot(lengths, [held / 1e6 for held in costs[name]], "o-", color=colour, label=name)
    memory.set(xscale="log", yscale="log", xlabel="time steps", ylabel="MB held for backward", title="memory")
    memory.legend(frameon=False)
    finish(figure, options.output)
    return {"lengths": lengths, "costs": costs}


if __name__ == "__main__":
    main()
