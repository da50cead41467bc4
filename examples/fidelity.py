"""How close the gradients come to backpropagation through time, and what that buys in training, as tables.

    python examples/fidelity.py --data spoken_digits.npz --mnist mnist.npz
    python examples/fidelity.py --data spoken_digits.npz --train --seeds 3 --epochs 12

Spoken digits: two recurrent layers; ``make_spoken_digits.py`` makes the file. MNIST: nine layers, rate-coded; the file
holds ``images`` uint8 [n, 28, 28] and ``labels`` [n]. Every network is trained a little by backpropagation through time
before its gradients are compared, parameter by parameter, on new batches. A row of a table gives, over all parameters,
the lowest cosine and the range of the norm ratio, of medians over networks and batches; and the lowest single cosine.
"""

from __future__ import annotations

import argparse
import json
import statistics
import time
from collections import defaultdict
from collections.abc import Callable, Iterable, Iterator, Sequence
from pathlib import Path
from typing import Any

import torch
from fidelity_baselines import online, truncated
from fidelity_networks import (
    DeepNet,
    RecurrentNet,
    draw_images,
    load_images,
    loss_of,
    train_on_speech,
)
from spoken_digits import load, spikes_of
from torch import Tensor, nn

import tracecompile

Comparisons = dict[str, list[tuple[float, float]]]
"""Cosines and norm ratios of every parameter, one per network and batch."""


COMPARED = [(readout, kind) for readout in ("linear", "leaky") for kind in ("mean", "last step", "maximum")]
COMPARED += [("spiking", "rate"), ("spiking", "first spike")]
"""Readouts and losses of the table for speech."""


def compare(net: nn.Module, model: nn.Module, spikes: Tensor, labels: Tensor, kind: str, found: Comparisons) -> None:
    """Adds one comparison of all gradients to those found so far."""
    comparison = tracecompile.compare_gradients(model, net, spikes, lambda scores: loss_of(scores, labels, kind))
    for row in comparison.rows:
        found[row.parameter].append((row.cosine, row.norm_ratio))


def summary(found: Comparisons) -> dict[str, Any]:
    """Returns one row of a table, and the medians of every parameter."""
    cosines = {name: statistics.median(cosine for cosine, _ in values) for name, values in found.items()}
    ratios = {name: statistics.median(ratio for _, ratio in values) for name, values in found.items()}
    worst = min(cosines, key=lambda name: cosines[name])
    return {
        "cosine": cosines[worst],
        "worst": worst,
        "low": min(ratios.values()),
        "high": max(ratios.values()),
        "single": min(cosine for values in found.values() for cosine, _ in values),
        "comparisons": len(found[worst]),
        "parameters": {name: {"cosine": cosines[name], "norm_ratio": ratios[name]} for name in found},
    }


def speech_tables(options: argparse.Namespace) -> Iterator[dict[str, Any]]:
    """Measures the recurrent network on spoken digits: all numbers of bins for the mean, one for other losses."""
    training, test = load(options.data, options.limit)
    for readout, kind in COMPARED:
        bins = options.bins if kind in ("mean", "rate") else [options.loss_bins]
        found: dict[int, Comparisons] = {count: defaultdict(list) for count in bins}
        for seed in range(options.networks):
            torch.manual_seed(seed)
            model = RecurrentNet(options.hidden, readout=readout)
            # With the maximum a network learns late; before it does, all its maxima are at the first steps. With first
            # spikes it does not learn unless its outputs spike, and so is trained by its rates.
            epochs = options.before * (3 if kind == "maximum" else 1) + seed % 3
            trained_with = "rate" if kind == "first spike" else kind
            train_on_speech(model, model, training, epochs, options.batch, seed, trained_with)
            generator = torch.Generator().manual_seed(1000 + seed)
            for _ in range(options.batches):
                chosen = torch.randint(len(test.digits), (options.batch,), generator=generator)
                spikes, labels = spikes_of(test.features[chosen], generator), test.digits[chosen]
                for count in bins:
                    compare(tracecompile.convert(model, bins=count), model, spikes, labels, kind, found[count])
        yield from ({"readout": readout, "loss": kind, "bins": count, **summary(found[count])} for count in bins)


def image_tables(options: argparse.Namespace) -> Iterator[dict[str, Any]]:
    """Measures the deep feed-forward network on rate-coded images, with the reset detached and in the graph."""
    images, labels = load_images(options.mnist, options.limit)
    for detached in (True, False):
        for steps in options.steps:
            bins = [count for count in options.image_bins if count <= steps]
            found: dict[int, Comparisons] = {count: defaultdict(list) for count in bins}
            for seed in range(options.networks):
                torch.manual_seed(seed)
                model = DeepNet(images.shape[1], options.hidden, options.layers, detached)
                generator = torch.Generator().manual_seed(seed)
                optimizer = torch.optim.Adam(model.parameters(), lr=1e-3)
                for _ in range(options.image_updates):
                    spikes, target = draw_images(images, labels, steps, options.batch, generator)
                    optimizer.zero_grad()
                    loss_of(model(spikes), target).backward()
                    optimizer.step()
                for _ in range(options.batches):
                    spikes, target = draw_images(images, labels, steps, options.batch, generator)
                    for count in bins:
                        compare(tracecompile.convert(model, bins=count), model, spikes, target, "mean", found[count])
            reset = "detached" if detached else "in graph"
            yield from ({"reset": reset, "steps": steps, "bins": count, **summary(found[count])} for count in bins)


def rules(model: RecurrentNet) -> dict[str, Callable[[Tensor], Tensor]]:
    """Returns the ways to train a network, each of which runs it forward with its own gradients."""
    return {
        "backpropagation through time": model,
        "measured, bins=1": tracecompile.convert(model, bins=1),
        "measured, bins=2": tracecompile.convert(model, bins=2),
        "measured, bins=4": tracecompile.convert(model, bins=4),
        "analytic": tracecompile.convert(model, rule="analytic"),
        "truncated, 10 steps": lambda spikes: truncated(model, spikes),
        "online through time": lambda spikes: online(model, spikes),
    }


def training_table(options: argparse.Namespace) -> Iterator[dict[str, Any]]:
    """Trains from scratch with every rule; test accuracy after the last epoch, one per seed."""
    training, test = load(options.data, options.limit)
    for name in rules(RecurrentNet(options.hidden)):
        accuracies, start = [], time.perf_counter()
        for seed in range(options.seeds):
            torch.manual_seed(seed)
            model = RecurrentNet(options.hidden)
            train_on_speech(rules(model)[name], model, training, options.epochs, options.batch, seed, anneal=True)
            with torch.no_grad():
                scores = model(spikes_of(test.features, torch.Generator().manual_seed(seed))).mean(0)
            accuracies.append(float((scores.argmax(1) == test.digits).float().mean()))
        seconds = (time.perf_counter() - start) / options.seeds
        yield {"rule": name, "mean": statistics.mean(accuracies), "accuracies": accuracies, "seconds": seconds}


def print_gradients(
    title: str, keys: Sequence[str], rows: Iterable[dict[str, Any]], verbose: bool
) -> list[dict[str, Any]]:
    """Prints a table of comparisons as its rows come, and returns them; verbose: under every row its parameters."""
    header = "".join(f"{key:<13}" for key in keys)
    print(f"\n{title}\n{header}{'cosine':>8}{'norm ratio':>15}{'single':>9}  worst parameter", flush=True)
    table = []
    for row in rows:
        ratio = f"{row['low']:.2f} - {row['high']:.2f}"
        line = "".join(f"{row[key]!s:<13}" for key in keys)
        print(f"{line}{row['cosine']:>8.4f}{ratio:>15}{row['single']:>9.4f}  {row['worst']}", flush=True)
        for name, values in row["parameters"].items() if verbose else ():
            print(f"{'':<{len(line)}}{values['cosine']:>8.4f}{values['norm_ratio']:>15.3f}{'':>9}  {name}")
        table.append(row)
    return table


def print_training(title: str, rows: Iterable[dict[str, Any]]) -> list[dict[str, Any]]:
    """Prints the accuracies of every rule as they come, and returns them."""
    print(f"\n{title}\n{'rule':<30}{'mean':>7}{'s/run':>8}  seeds", flush=True)
    table = []
    for row in rows:
        seeds = " ".join(f"{accuracy:.3f}" for accuracy in row["accuracies"])
        print(f"{row['rule']:<30}{row['mean']:>7.3f}{row['seconds']:>8.1f}  {seeds}", flush=True)
        table.append(row)
    return table


def main(argv: Sequence[str] | None = None) -> dict[str, list[dict[str, Any]]]:
    """Prints the tables that were asked for and returns their rows."""
    parser = argparse.ArgumentParser(description="Gradients next to those of backpropagation through time.")
    parser.add_argument("--data", type=Path, help="spoken digits, npz file of make_spoken_digits.py")
    parser.add_argument("--mnist", type=Path, help="npz file with images [n, 28, 28] and labels [n]")
    parser.add_argument("--train", action="store_true", help="train on --data from scratch, instead of comparing")
    parser.add_argument("--verbose", action="store_true", help="one row per parameter as well")
    parser.add_argument("--json", type=Path, help="write the tables to this file")
    parser.add_argument("--networks", type=int, default=4, help="networks per row")
    parser.add_argument("--batches", type=int, default=2, help="batches per network")
    parser.add_argument("--before", type=int, default=2, help="epochs before comparing; one and two more for others")
    parser.add_argument("--bins", type=int, nargs="+", default=[1, 2, 4, 10, 100])
    parser.add_argument("--loss-bins", type=int, default=8, help="bins for losses other than the mean")
    parser.add_argument("--steps", type=int, nargs="+", default=[20, 100], help="time steps of images")
    parser.add_argument("--image-bins", type=int, nargs="+", default=[1, 4, 10])
    parser.add_argument("--image-updates", type=int, default=100, help="optimiser steps before comparing")
    parser.add_argument("--layers", type=int, default=9, help="layers of the image network, the readout included")
    parser.add_argument("--seeds", type=int, default=3)
    parser.add_argument("--epochs", type=int, default=12, help="epochs of --train")
    parser.add_argument("--hidden", type=int, default=128)
    parser.add_argument("--batch", type=int, default=64)
    parser.add_argument("--limit", type=int, help="use only so many examples")
    options = parser.parse_args(argv)
    tables: dict[str, list[dict[str, Any]]] = {}
    if options.data and not options.train:
        title, keys = f"Spoken digits, two recurrent layers of {options.hidden}", ("readout", "loss", "bins")
        tables["speech"] = print_gradients(title, keys, speech_tables(options), options.verbose)
    if options.mnist:
        title, keys = f"Images, rate-coded, {options.layers} layers", ("reset", "steps", "bins")
        tables["images"] = print_gradients(title, keys, image_tables(options), options.verbose)
    if options.data and options.train:
        title = f"Spoken digits from scratch, {options.epochs} epochs, test accuracy"
        tables["training"] = print_training(title, training_table(options))
    if not tables:
        parser.print_help()
    if options.json:
        options.json.write_text(json.dumps(tables, indent=1))
    return tables


if __name__ == "__main__":
    torch.set_num_threads(1)
    main()
