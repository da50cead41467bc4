"""What bins buy: gradients of the demo's network, a little trained, next to backpropagation through time.

python docs/figures/bins.py
"""

from __future__ import annotations

import argparse
from collections.abc import Sequence
from functools import partial
from pathlib import Path
from typing import Any

import torch
from style import BPTT, CONVERTED, axes_of, finish
from torch.nn import functional

import tracecompile
from tracecompile.demo.data import Digits, load_digits, spike_trains
from tracecompile.demo.network import DigitNet
from tracecompile.demo.run import BATCH, train
from tracecompile.diagnostics.held import count_held


def main(arguments: Sequence[str] | None = None) -> dict[str, Any]:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--output", type=Path, default=Path(__file__).with_name("bins.svg"))
    parser.add_argument("--bins", default="1,2,4,10,25,100")
    parser.add_argument("--steps", type=int, default=100)
    parser.add_argument("--epochs", type=int, default=2)
    parser.add_argument("--digits", type=int, default=None, help="fewer of them, for a quick look")
    options = parser.parse_args(arguments)
    torch.set_num_threads(1)
    digits, model = load_digits(), DigitNet(seed=0)
    if options.digits:
        digits = Digits(*(each[: options.digits] for each in vars(digits).values()))
    train(model, digits, options.steps, options.epochs, 0, lambda line: None, "through time")
    spikes = spike_trains(digits.images[:BATCH], options.steps, torch.Generator().manual_seed(0))
    loss = partial(functional.cross_entropy, target=digits.labels[:BATCH])
    bins = [int(each) for each in options.bins.split(",")]
    rows = []
    for count in bins:
        net = tracecompile.convert(model, spikes, bins=count, backend="eager")
        compared = tracecompile.compare_gradients(model, net, (spikes,), loss)
        held = count_held(lambda net=net: loss(net(spikes)))  # type: ignore[misc]
        rows.append((compared, held))
        print(count, f"{compared.worst.cosine:.4f}", held)
    held_through_time = count_held(lambda: loss(model(spikes)))
    figure, (cosines, norms, memory) = axes_of(3)
    for row in rows[0][0].rows:
        found = [next(each for each in compared.rows if each.parameter == row.parameter) for compared, _ in rows]
        cosines.plot(bins, [each.cosine for each in found], "o-", ms=3, label=row.parameter)
        norms.plot(bins, [each.norm_ratio for each in found], "o-", ms=3)
    cosines.set(xscale="log", xlabel="bins", ylabel="cosine", title=f"direction of gradients, {options.steps} steps")
    cosines.legend(frameon=False, loc="lower right", fontsize=8)
    norms.set(xscale="log", xlabel="bins", ylabel="norm over that of the exact one", title="their length")
    memory.plot(bins, [held / 1e6 for _, held in rows], "o-", color=CONVERTED, label="converted")
    memory.axhline(held_through_time / 1e6, color=BPTT, label="through time")
    memory.set(xscale="log", yscale="log", xlabel="bins", ylabel="MB held for backward", title="memory")
    memory.legend(frameon=False)
    finish(figure, options.output)
    return {
        "bins": bins,
        "cosines": [compared.worst.cosine for compared, _ in rows],
        "held": [held for _, held in rows],
    }


if __name__ == "__main__":
    main()
