"""``tracecompile demo``: one recurrent network, trained on handwritten digits with and without conversion.

The digits are scikit-learn's bundled set (1,797 images of 8 x 8), each shown as a Bernoulli spike train whose firing
probability per step is the pixel's brightness. Both trainings start from the same weights and see the same batches and
the same spikes. Then the sequence gets longer and only the memory of backpropagation through time follows it.
"""

from __future__ import annotations

import copy
import shutil
import statistics
import time
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from dataclasses import replace
from functools import partial
from pathlib import Path
from typing import Any

import torch
from torch import nn
from torch.nn import functional

import tracecompile
from tracecompile.demo.data import Digits, load_digits, spike_trains
from tracecompile.demo.network import DigitNet
from tracecompile.demo.plot import draw, require_matplotlib
from tracecompile.demo.result import BYTES_LIMIT, DemoResult, Length, Training
from tracecompile.diagnostics.cost import REPETITIONS, Cost, measure_step, time_step
from tracecompile.settings import Backend

BATCH = 64
LONG = 2_000
"""Time steps above which a warm training step is timed once, since every one takes seconds."""
Progress = Callable[[str], Any]


def train(
    model: nn.Module, digits: Digits, steps: int, epochs: int, seed: int, progress: Progress, name: str
) -> Training:
    """Trains with Adam on cross entropy; the same seed gives the same batches and spikes whatever the model is."""
    generator = torch.Generator().manual_seed(seed)
    optimizer = torch.optim.Adam(model.parameters(), lr=2e-3)
    batches = -(-len(digits.labels) // BATCH)
    schedule = torch.optim.lr_scheduler.CosineAnnealingLR(optimizer, epochs * batches)
    losses: list[float] = []
    model.train()
    progress(f"{name}: the first step")
    first = _first_step(model, digits, steps)
    times: list[float] = []
    for epoch in range(epochs):
        for chosen in torch.split(torch.randperm(len(digits.labels), generator=generator), BATCH):
            spikes = spike_trains(digits.images[chosen], steps, generator)
            start = time.perf_counter()
            optimizer.zero_grad()
            loss = functional.cross_entropy(model(spikes), digits.labels[chosen])
            loss.backward()
            optimizer.step()
            schedule.step()
            times.append(time.perf_counter() - start)
            losses.append(float(loss.detach()))
            progress(f"{name}: epoch {epoch + 1} of {epochs}, loss {losses[-1]:.3f}")
    loss_fn = partial(functional.cross_entropy, target=digits.labels[:BATCH])
    cost = measure_step(model, (spike_trains(digits.images[:BATCH], steps, generator),), loss_fn)
    return Training(accuracy(model, digits, steps, seed), statistics.median(times), cost.bytes, losses, first)


def _first_step(model: nn.Module, digits: Digits, steps: int) -> float:
    """Returns how long the first training step takes, which converts and compiles what is to be; nothing is updated."""
    spikes = spike_trains(digits.images[:BATCH], steps, torch.Generator().manual_seed(0))
    start = time.perf_counter()
    functional.cross_entropy(model(spikes), digits.labels[:BATCH]).backward()
    seconds = time.perf_counter() - start
    model.zero_grad(set_to_none=True)
    return seconds


def accuracy(model: nn.Module, digits: Digits, steps: int, seed: int) -> float:
    """Returns the share of test digits recognised, in eval mode, with spikes of their own seed."""
    model.eval()
    spikes = spike_trains(digits.test_images, steps, torch.Generator().manual_seed(seed + 1))
    with torch.no_grad():
        hits = model(spikes).argmax(1) == digits.test_labels
    return float(hits.float().mean())


def measure_lengths(
    model: nn.Module, net: nn.Module, digits: Digits, lengths: list[int], progress: Progress
) -> list[Length]:
    """Runs one training step per length on both; of backpropagation through time only those that fit the limit."""
    rows: list[Length] = []
    per_step = 0.0
    loss = partial(functional.cross_entropy, target=digits.labels[:BATCH])
    model.train()
    net.train()
    for steps in lengths:
        spikes = spike_trains(digits.images[:BATCH], steps, torch.Generator().manual_seed(steps))
        progress(f"{steps:,} time steps, converted")
        converted = _warm(net, spikes, loss)
        predicted = int(per_step * steps)
        through: Cost | None = None
        if predicted <= BYTES_LIMIT:
            progress(f"{steps:,} time steps, backpropagation through time")
            through = _warm(model, spikes, loss)
            per_step, predicted = through.bytes / steps, through.bytes
        rows.append(Length(steps, converted, through, predicted))
    return rows


def _warm(model: nn.Module, spikes: torch.Tensor, loss: Callable[[Any], torch.Tensor]) -> Cost:
    """Measures a step that is not the first of its kind."""
    cost = measure_step(model, (spikes,), loss)
    times = 1 if spikes.shape[0] > LONG else REPETITIONS
    return replace(cost, seconds=min(time_step(model, (spikes,), loss) for _ in range(times)))


def run_demo(
    steps: int = 250,
    seed: int = 0,
    output: Path = Path("tracecompile-demo.png"),
    quick: bool = False,
    threads: int = 1,
    progress: Progress = lambda text: None,
) -> DemoResult:
    """Trains both, lengthens the sequence, saves the picture.

    Args:
        steps: Time steps of a spike train.
        seed: Seed of weights, batches and spikes.
        output: The PNG to write.
        quick: Few examples and short sequences: every part runs, nothing is learned or compiled.
        threads: Threads of the processor; matrices this small gain little from a second one.
        progress: Receives a line of text about what happens now.

    Raises:
        MissingDependency: scikit-learn or matplotlib is not installed.
    """
    require_matplotlib()
    digits = load_digits()
    epochs, lengths = 6, [100, 1_000, 4_000]
    backend: Backend = "inductor" if shutil.which("g++") else "auto"
    if quick:
        digits = Digits(digits.images[:256], digits.labels[:256], digits.test_images[:64], digits.test_labels[:64])
        epochs, lengths, backend = 1, [10, 20, 40], "eager"
    model = DigitNet(seed=seed)
    net = tracecompile.convert(copy.deepcopy(model), backend=backend)
    with _threads(threads):
        through_time = train(model, digits, steps, epochs, seed, progress, "backpropagation through time")
        converted = train(net, digits, steps, epochs, seed, progress, "converted")
        rows = measure_lengths(model, net, digits, lengths, progress)
    result = DemoResult(steps, through_time, converted, rows, str(output), backend)
    draw(result, output)
    return result


@contextmanager
def _threads(count: int) -> Iterator[None]:
    before = torch.get_num_threads()
    torch.set_num_threads(count)
    try:
        yield
    finally:
        torch.set_num_threads(before)
