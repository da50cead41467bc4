"""The picture of the README: memory and time of a training step against its length, and what is learned.

    python docs/figures/overview.py

The network is the demo's, one recurrent layer of spiking neurons on scikit-learn's handwritten digits. Both trainings
start from the same weights and see the same spikes. Times are of a step after warm-up, the best of three, the two ways
in turn; what the compiler took before is printed beside them.
"""

from __future__ import annotations

import argparse
import copy
from collections.abc import Sequence
from dataclasses import replace
from functools import partial
from pathlib import Path
from typing import Any

import torch
from style import BPTT, CONVERTED, axes_of, finish
from torch import nn
from torch.nn import functional

import tracecompile
from tracecompile.demo.data import Digits, load_digits, spike_trains
from tracecompile.demo.network import DigitNet
from tracecompile.demo.run import BATCH, accuracy, train
from tracecompile.diagnostics.cost import Cost, format_bytes, measure_step, time_step

SHOWN = {"backpropagation through time": BPTT, "converted": CONVERTED}


def best_of(models: dict[str, nn.Module], spikes: torch.Tensor, loss: Any, times: int) -> dict[str, Cost]:
    """Returns what a step of each costs, the time the least of several in turn, after one that does not count."""
    found = {name: measure_step(model, (spikes,), loss) for name, model in models.items()}
    seconds = [{name: time_step(model, (spikes,), loss) for name, model in models.items()} for _ in range(times)]
    return {name: replace(cost, seconds=min(each[name] for each in seconds)) for name, cost in found.items()}


def main(arguments: Sequence[str] | None = None) -> dict[str, Any]:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--output", type=Path, default=Path(__file__).with_name("overview.svg"))
    parser.add_argument("--lengths", default="100,300,1000,3000")
    parser.add_argument("--epochs", type=int, default=8)
    parser.add_argument("--digits", type=int, default=None, help="fewer of them, for a quick look")
    parser.add_argument("--backend", default="auto", choices=["auto", "eager", "inductor"])
    options = parser.parse_args(arguments)
    torch.set_num_threads(1)
    digits, model = load_digits(), DigitNet(seed=0)
    if options.digits:
        digits = Digits(*(each[: options.digits] for each in vars(digits).values()))
    net = tracecompile.convert(copy.deepcopy(model), backend=options.backend)
    pair: dict[str, nn.Module] = {"backpropagation through time": model, "converted": net}
    reached = {}
    for name, each in pair.items():
        train(each, digits, 100, options.epochs, 0, lambda line: None, name)
        reached[name] = accuracy(each, digits, 100, 0)
        each.train()
    lengths = [int(length) for length in options.lengths.split(",")]
    costs: dict[str, list[Cost]] = {name: [] for name in pair}
    loss = partial(functional.cross_entropy, target=digits.labels[:BATCH])
    for steps in lengths:
        spikes = spike_trains(digits.images[:BATCH], steps, torch.Generator().manual_seed(steps))
        for name, cost in best_of(pair, spikes, loss, 3 if options.digits is None else 1).items():
            costs[name].append(cost)
            print(f"{steps:6,} steps, {name:29}: {format_bytes(cost.bytes):>9}, {cost.seconds:.3f} s")
    execution = net.report.execution
    compiling = execution.compile_seconds if execution else 0.0
    print(execution)
    print({name: f"{share:.1%}" for name, share in reached.items()})
    draw(options.output, lengths, costs, reached, compiling)
    return {"lengths": lengths, "costs": costs, "reached": reached}


def draw(
    path: Path, lengths: list[int], costs: dict[str, list[Cost]], reached: dict[str, float], compiling: float
) -> None:
    figure, (memory, seconds, accurate) = axes_of(3, widths=(1.25, 1.25, 0.8))
    for name, colour in SHOWN.items():
        megabytes = [cost.bytes / 1e6 for cost in costs[name]]
        memory.plot(lengths, megabytes, "o-", color=colour, label=name)
        memory.annotate(format_bytes(1e6 * megabytes[-1]), (lengths[-1], megabytes[-1]), xytext=(0, 7),
                        textcoords="offset points", ha="right", color=colour)  # fmt: skip
        seconds.plot(lengths, [cost.seconds for cost in costs[name]], "o-", color=colour)
    memory.set(xscale="log", yscale="log", xlabel="time steps", ylabel="MB held for backward", title="memory")
    memory.legend(frameon=False, loc="upper left")
    memory.set_ylim(top=5 * max(cost.bytes for cost in costs["backpropagation through time"]) / 1e6)
    seconds.set(
        xscale="log", yscale="log", xlabel="time steps", ylabel="seconds, after warm-up", title="a training step"
    )
    if compiling:
        said = f"before: {compiling:.0f} s of compiling, once"
        seconds.text(0.98, 0.03, said, transform=seconds.transAxes, ha="right", color=CONVERTED)
    bars = accurate.bar(("through\ntime", "converted"), [100 * reached[name] for name in SHOWN], 0.55,
                        color=list(SHOWN.values()))  # fmt: skip
    accurate.bar_label(bars, [f"{100 * reached[name]:.1f}" for name in SHOWN], padding=2)
    accurate.set(ylim=(0, 112), ylabel="test digits recognised, %", title="accuracy, 100 steps")
    finish(figure, path)


if __name__ == "__main__":
    main()
