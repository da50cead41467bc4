"""A task that needs the far past: a cue at the beginning, distractors, and an answer that is asked for at the end.

    python examples/long_memory.py --steps 500,2000 --output long_memory
    python examples/long_memory.py --steps 10000 --rules exact --backend inductor --json exact.json
    python examples/long_memory_results.py exact.json bptt.json --output long_memory

Spikes of one of two groups are the cue if a gate is open, which it is for the first 50 steps alone; after that both
groups go on in turn, and mean nothing. What is needed at the end has to be written at the beginning, into thresholds
that adapt slowly: a gradient that ends after some tens of steps never gets there. The same network learns by
backpropagation through time, by the exact rule, by the measured rule, and by truncated backpropagation; what each
learns, holds and takes is printed as a table, and drawn.
"""

from __future__ import annotations

import argparse
import math
import statistics
import time
from collections.abc import Callable, Iterator, Sequence
from pathlib import Path
from typing import Any

import torch
from long_memory_results import Row, draw, table_of, write_down
from torch import Tensor, nn
from torch.nn import functional

import tracecompile
import tracecompile.nn as snn
from tracecompile.diagnostics.held import count_held

CUE, ASKED, BLOCK = 50, 25, 25
"""Steps of the cue, of the question, and of a distractor."""
WINDOW = 32
"""Steps of a window of truncated backpropagation."""
GROUP, CHANNELS = 5, 14
RULES: dict[str, dict[str, Any] | int | None] = {
    "bptt": None,
    "exact": {"rule": "exact"},
    "measured, K=4": {"bins": 4},
    "measured, K=16": {"bins": 16},
    f"truncated, {WINDOW} steps": WINDOW,
}
"""Options of the conversion, or steps of the windows that the model itself is differentiated in: None for all."""
SPIKE = snn.fast_sigmoid(5.0)

States = tuple[Tensor, Tensor]


class Recall(nn.Module):
    """Neurons whose thresholds adapt slowly, and a readout that is read while the answer is asked for."""

    def __init__(self, steps: int, hidden: int = 32, leak: float = 0.8, strength: float = 0.03) -> None:
        super().__init__()
        self.hidden, self.leak, self.strength, self.memory = hidden, leak, strength, math.exp(-1 / steps)
        self.below, self.above = nn.Linear(CHANNELS, hidden), nn.Linear(hidden, 2)
        with torch.no_grad():
            self.below.weight.mul_(1.5)
            self.below.bias.zero_()

    def step(self, x: Tensor, states: States) -> tuple[Tensor, States]:
        """Returns the scores [batch, 2] of one step for inputs [batch, 14], and the next states."""
        membrane, adaptation = states
        membrane = self.leak * membrane + self.below(x)
        spikes = SPIKE(membrane - 1.0 - adaptation)
        states = membrane - spikes, self.memory * adaptation + self.strength * spikes
        return self.above(spikes), states

    def start(self, batch: int) -> States:
        """Returns the states before the first step."""
        zeros = self.below.weight.new_zeros(batch, self.hidden)
        return zeros, zeros

    def forward(self, x: Tensor) -> Tensor:
        """Returns the mean scores [batch, 2] of the last 25 steps for inputs [time, batch, 14]."""
        states, scores = self.start(x.shape[1]), []
        for x_t in x:
            score, states = self.step(x_t, states)
            scores.append(score)
        return torch.stack(scores)[-ASKED:].mean(0)  # a condition on the time step would be another program per length


def draw_trials(batch: int, steps: int, generator: torch.Generator) -> tuple[Tensor, Tensor]:
    """Returns input spikes [steps, batch, 14] and the group of the cue, [batch]."""
    cue = torch.randint(2, (batch,), generator=generator)
    blocks = torch.randint(2, (-(-steps // BLOCK), batch), generator=generator).repeat_interleave(BLOCK, 0)[:steps]
    blocks[:CUE] = cue
    chance = torch.zeros(steps, batch, CHANNELS)
    chance[:, :, : 2 * GROUP] = 0.3 * functional.one_hot(blocks, 2).repeat_interleave(GROUP, 2)
    chance[:CUE, :, 2 * GROUP : 2 * GROUP + 2] = 0.5  # the gate
    chance[steps - ASKED :] = 0.0
    chance[steps - ASKED :, :, 2 * GROUP + 2 :] = 0.5  # the question
    return torch.bernoulli(chance, generator=generator), cue


def loss_of(scores: Tensor, cue: Tensor) -> Tensor:
    return functional.cross_entropy(5.0 * scores, cue)


def in_windows(model: Recall, x: Tensor, window: int) -> Tensor:
    """Returns the model's scores; the states go on from each window to the next, and gradients do not."""
    states, total = model.start(x.shape[1]), x.new_zeros(x.shape[1], 2)
    first_asked = x.shape[0] - ASKED
    for begin in range(0, x.shape[0], window):
        states = states[0].detach(), states[1].detach()
        for t in range(begin, min(begin + window, x.shape[0])):
            score, states = model.step(x[t], states)
            if t >= first_asked:
                total = total + score
    return total / ASKED


def forward_by(name: str, model: Recall, backend: str) -> Callable[[Tensor], Tensor]:
    """Returns the model with the gradients of a rule."""
    given = RULES[name]
    if isinstance(given, dict):
        example, _ = draw_trials(4, 200, torch.Generator().manual_seed(0))
        return tracecompile.convert(model, example, **given, backend=backend)
    return lambda x: in_windows(model, x, given or x.shape[0])


def train(name: str, steps: int, options: argparse.Namespace) -> Iterator[Row]:
    """Trains a fresh network by one rule; yields what it has come to, after every test."""
    row = Row(name, steps)
    torch.manual_seed(options.seed)
    generator = torch.Generator().manual_seed(options.seed)
    model = Recall(steps)
    forward = forward_by(name, model, options.backend)
    x, cue = draw_trials(options.batch, steps, torch.Generator().manual_seed(1))
    row.held = count_held(lambda: loss_of(forward(x), cue))
    optimizer = torch.optim.Adam(model.parameters(), options.rate)
    seconds: list[float] = []
    begun = time.perf_counter()
    for turn in range(1, options.rounds + 1):
        x, cue = draw_trials(options.batch, steps, generator)
        optimizer.zero_grad()
        start = time.perf_counter()
        loss_of(forward(x), cue).backward()
        seconds.append(time.perf_counter() - start)
        nn.utils.clip_grad_norm_(model.parameters(), 1.0)
        optimizer.step()
        ends = turn == options.rounds or time.perf_counter() - begun > options.longest
        if turn % options.every == 0 or ends:
            with torch.no_grad():
                x, cue = draw_trials(options.tested, steps, torch.Generator().manual_seed(10_000 + turn))
                row.correct[turn] = float((forward(x).argmax(1) == cue).float().mean())
            row.seconds = statistics.median(seconds)
            yield row
        if ends:
            break


def main(argv: Sequence[str] | None = None) -> list[Row]:
    """Trains by every rule at every length, prints the table and draws the picture."""
    parser = argparse.ArgumentParser(description="A cue, distractors, and an answer at the end.")
    parser.add_argument("--steps", default="500,2000,10000", help="time steps of a trial")
    parser.add_argument("--rules", default="", help="of the table, separated by semicolons; all where left out")
    parser.add_argument("--rounds", type=int, default=200, help="batches of trials to learn from")
    parser.add_argument("--every", type=int, default=20, help="rounds between tests")
    parser.add_argument("--batch", type=int, default=64)
    parser.add_argument("--tested", type=int, default=256, help="new trials of a test")
    parser.add_argument("--rate", type=float, default=5e-3, help="learning rate")
    parser.add_argument("--seed", type=int, default=0)
    parser.add_argument("--longest", type=float, default=math.inf, help="seconds after which a rule's rounds end")
    parser.add_argument("--backend", default="eager", help="what runs the converted networks")
    parser.add_argument("--output", type=Path, help="picture to draw")
    parser.add_argument("--json", type=Path, help="file to write the results into, after every test")
    options = parser.parse_args(argv)
    chosen = [name.strip() for name in options.rules.split(";") if name.strip()] or list(RULES)
    rows: list[Row] = []
    for steps in (int(count) for count in options.steps.split(",")):
        for name in chosen:
            for row in train(name, steps, options):
                turn, share = list(row.correct.items())[-1]
                print(f"{steps:,} steps, {name}, round {turn}: {share:.1%}", flush=True)
                if options.json is not None:
                    write_down([*rows, row], options.json)
            rows.append(row)
    print(table_of(rows))
    if options.output is not None:
        draw(rows, options.output.with_suffix(".png"))
    return rows


if __name__ == "__main__":
    torch.set_num_threads(1)
    main()
