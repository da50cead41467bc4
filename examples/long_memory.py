"""A task that needs the far past: a cue at the beginning, distractors, and an answer that is asked for at the end.

    python examples/long_memory.py --steps 500,2000 --output long_memory

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
from collections.abc import Callable, Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import torch
from torch import Tensor, nn
from torch.nn import functional

import tracecompile
import tracecompile.nn as snn
from tracecompile.diagnostics.held import count_held
from tracecompile.errors import ConversionError

CUE, ASKED, BLOCK = 50, 25, 25
"""Steps of the cue, of the question, and of a distractor."""
WINDOW = 32
"""Steps of a window of truncated backpropagation."""
GROUP, CHANNELS = 5, 14
RULES: dict[str, dict[str, Any] | None] = {
    "bptt": {"rule": "bptt"},
    "exact": {"rule": "exact"},
    "measured, K=4": {"bins": 4},
    "measured, K=16": {"bins": 16},
    f"truncated, {WINDOW} steps": None,
}
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
        states, total = self.start(x.shape[1]), x.new_zeros(x.shape[1], 2)
        for t in range(x.shape[0]):
            score, states = self.step(x[t], states)
            if t >= x.shape[0] - ASKED:
                total = total + score
        return total / ASKED


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


@dataclass
class Row:
    """What one rule came to.

    Attributes:
        rule: Its name.
        steps: Of a trial.
        correct: Share of new trials that it answers, by the rounds of training before; of its last rounds.
        held: Bytes held for backward.
        seconds: Median of a round's.
        note: Why there is nothing.
    """

    rule: str
    steps: int
    correct: dict[int, float] = field(default_factory=dict)
    held: int = 0
    seconds: float = math.nan
    note: str = ""

    @property
    def best(self) -> float:
        """The mean share of the last three tests."""
        return statistics.mean(list(self.correct.values())[-3:]) if self.correct else math.nan

    def __str__(self) -> str:
        if self.note:
            return f"| {self.steps:,} | {self.rule} | {self.note} | | |"
        return f"| {self.steps:,} | {self.rule} | {self.best:.1%} | {self.held / 1e6:.2f} MB | {self.seconds:.2f} s |"


def truncated_round(model: Recall, x: Tensor, cue: Tensor) -> float:
    """Runs backward in windows: the states go on from each to the next, and gradients do not."""
    states, total = model.start(x.shape[1]), x.new_zeros(x.shape[1], 2)
    first_asked = x.shape[0] - ASKED
    for begin in range(0, x.shape[0], WINDOW):
        states = states[0].detach(), states[1].detach()
        for t in range(begin, min(begin + WINDOW, x.shape[0])):
            score, states = model.step(x[t], states)
            if t >= first_asked:
                total = total + score
    loss = loss_of(total / ASKED, cue)
    loss.backward()
    return float(loss.detach())


def train(name: str, steps: int, options: argparse.Namespace, say: Callable[[str], None]) -> Row:
    """Trains a fresh network by one rule."""
    row = Row(name, steps)
    torch.manual_seed(options.seed)
    generator = torch.Generator().manual_seed(options.seed)
    model = Recall(steps)
    given = RULES[name]
    module: nn.Module = model
    if given is not None:
        try:
            module = tracecompile.convert(model, draw_trials(4, 200, generator)[0], **given)
        except ConversionError as refusal:
            row.note = str(refusal).splitlines()[0]
            return row
    optimizer = torch.optim.Adam(model.parameters(), options.rate)
    seconds = []
    for turn in range(1, options.rounds + 1):
        x, cue = draw_trials(options.batch, steps, generator)
        optimizer.zero_grad()
        start = time.perf_counter()
        if given is None:
            truncated_round(model, x, cue)
        else:
            loss_of(module(x), cue).backward()
        seconds.append(time.perf_counter() - start)
        nn.utils.clip_grad_norm_(model.parameters(), 1.0)
        optimizer.step()
        if turn % options.every == 0 or turn == options.rounds:
            with torch.no_grad():
                x, cue = draw_trials(options.tested, steps, torch.Generator().manual_seed(10_000 + turn))
                row.correct[turn] = float((module(x).argmax(1) == cue).float().mean())
            say(f"{steps:,} steps, {name}, round {turn}: {row.correct[turn]:.1%}")
    x, cue = draw_trials(options.batch, steps, generator)
    if given is not None:
        row.held = count_held(lambda: loss_of(module(x), cue))
    else:
        row.held = count_held(lambda: model(x[-WINDOW:]).sum())
    row.seconds = statistics.median(seconds)
    return row


def draw(rows: Sequence[Row], path: Path) -> None:
    """Draws what the rules have learnt, round by round, one picture per number of steps."""
    import matplotlib

    matplotlib.use("Agg")
    from matplotlib import pyplot

    lengths = list(dict.fromkeys(row.steps for row in rows))
    figure, axes = pyplot.subplots(1, len(lengths), figsize=(4.5 * len(lengths), 3.4), sharey=True, squeeze=False)
    for axis, steps in zip(axes[0], lengths, strict=True):
        for row in rows:
            if row.steps == steps and row.correct:
                axis.plot(list(row.correct), [100 * share for share in row.correct.values()], label=row.rule)
        axis.axhline(50, color="grey", linewidth=0.8, linestyle=":")
        axis.set(title=f"{steps:,} steps", xlabel="rounds of training")
    axes[0][0].set_ylabel("answers that are right, %")
    axes[0][0].legend(frameon=False, fontsize=8)
    figure.tight_layout()
    figure.savefig(path, dpi=150)
    pyplot.close(figure)


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
    parser.add_argument("--output", type=Path, help="picture to draw")
    options = parser.parse_args(argv)
    chosen = [name.strip() for name in options.rules.split(";") if name.strip()] or list(RULES)
    rows = []
    for steps in (int(count) for count in options.steps.split(",")):
        rows += [train(name, steps, options, lambda text: print(text, flush=True)) for name in chosen]
    print("\n| steps | rule | right | held | a round |\n|---|---|---|---|---|")
    print("\n".join(str(row) for row in rows))
    if options.output is not None:
        draw(rows, options.output.with_suffix(".png"))
    return rows


if __name__ == "__main__":
    main()
