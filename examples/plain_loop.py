"""A plain loop, as users of Accelerate write it: mixed precision, accumulation, clipping, a schedule, callbacks.

    python examples/plain_loop.py
    python examples/plain_loop.py --precision bfloat16

Callbacks get what Weights & Biases would: a configuration at the start, a dictionary per step, an end. ``wandb.init``,
``run.log`` and ``run.finish`` fit behind the three methods of ``Callback``.
"""

from __future__ import annotations

import argparse
import json
from collections.abc import Mapping, Sequence
from contextlib import nullcontext
from pathlib import Path
from typing import Any, Protocol

import torch
from torch import Tensor, nn
from torch.nn import functional

import tracecompile
import tracecompile.nn as snn

CHANNELS, CLASSES = 12, 3


class Callback(Protocol):
    """Hears of a training."""

    def begin(self, config: Mapping[str, Any]) -> None: ...

    def log(self, values: Mapping[str, float], step: int) -> None: ...

    def finish(self) -> None: ...


class JsonLines:
    """Writes a line of JSON per step."""

    def __init__(self, path: Path) -> None:
        self.path = path
        self.lines: list[str] = []

    def begin(self, config: Mapping[str, Any]) -> None:
        self.lines = [json.dumps({"config": dict(config)})]

    def log(self, values: Mapping[str, float], step: int) -> None:
        self.lines.append(json.dumps({"step": step, **values}))

    def finish(self) -> None:
        self.path.write_text("\n".join(self.lines) + "\n")


class Net(nn.Module):
    """One layer of spiking neurons and a leaky readout, averaged over time."""

    def __init__(self, hidden: int = 32) -> None:
        super().__init__()
        self.weights, self.neurons = nn.Linear(CHANNELS, hidden), snn.LIF(hidden)
        self.output, self.readout = nn.Linear(hidden, CLASSES), snn.LI(CLASSES)

    def forward(self, x: Tensor) -> Tensor:
        state, last, total = None, None, 0.0
        for x_t in x:
            spikes, state = self.neurons(self.weights(x_t), state)
            score, last = self.readout(self.output(spikes), last)
            total = total + score
        return total / x.shape[0]


def batch_of(size: int, steps: int) -> tuple[Tensor, Tensor]:
    """Spike trains in which one of three groups of channels fires more often."""
    labels = torch.randint(CLASSES, (size,))
    rates = torch.full((size, CLASSES, CHANNELS // CLASSES), 0.1)
    rates[torch.arange(size), labels] = 0.4
    return torch.bernoulli(rates.flatten(1).expand(steps, size, CHANNELS)), labels


def main(arguments: Sequence[str] | None = None, callbacks: Sequence[Callback] = ()) -> list[float]:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--updates", type=int, default=40)
    parser.add_argument("--accumulate", type=int, default=2)
    parser.add_argument("--steps", type=int, default=50)
    parser.add_argument("--precision", choices=["float32", "bfloat16", "float16"], default="float32")
    parser.add_argument("--log", type=Path, default=None)
    options = parser.parse_args(arguments)
    hearers = [*callbacks, *([JsonLines(options.log)] if options.log else [])]
    torch.manual_seed(0)
    device = "cuda" if torch.cuda.is_available() else "cpu"
    net = tracecompile.convert(Net().to(device))
    optimizer = torch.optim.AdamW(net.parameters(), lr=1e-2)
    schedule = torch.optim.lr_scheduler.CosineAnnealingLR(optimizer, options.updates)
    scaler = torch.amp.GradScaler(device, enabled=options.precision == "float16")
    precision = getattr(torch, options.precision)

    for each in hearers:
        each.begin(vars(options) | {"log": str(options.log)})
    losses = []
    for update in range(options.updates):
        total = 0.0
        for _ in range(options.accumulate):
            x, labels = (value.to(device) for value in batch_of(16, options.steps))
            # Autocast around the call of the net; what it records adds up in float32.
            with nullcontext() if precision is torch.float32 else torch.autocast(device, precision):
                scores = net(x)
            loss = functional.cross_entropy(scores.float(), labels) / options.accumulate
            scaler.scale(loss).backward()
            total += float(loss.detach())
        scaler.unscale_(optimizer)
        norm = nn.utils.clip_grad_norm_(net.parameters(), 1.0)
        scaler.step(optimizer)
        scaler.update()
        optimizer.zero_grad()
        schedule.step()
        losses.append(total)
        for each in hearers:
            each.log({"loss": total, "gradient_norm": float(norm), "rate": schedule.get_last_lr()[0]}, update)
    for each in hearers:
        each.finish()
    print(f"loss {losses[0]:.3f} at first, {losses[-1]:.3f} at last")
    return losses


if __name__ == "__main__":
    main()
