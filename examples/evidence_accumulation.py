"""Evidence accumulation over 10,000 steps: clicks on the left and on the right; which side had more?

    python examples/evidence_accumulation.py

The clicks are made one step at a time and streamed through the converted network, so neither the input nor any graph
over time is ever held. The loss is step-wise, for at every step the network should already lean towards the answer, and
the weights are updated while the stream goes on.
"""

from __future__ import annotations

import argparse
import time
from collections.abc import Iterator, Sequence
from typing import Any

import torch
from torch import nn
from torch.nn import functional

import tracecompile
from tracecompile.diagnostics.memory import live_state_bytes


class Spike(torch.autograd.Function):
    """A spike above threshold; derivative of an arctangent backward."""

    @staticmethod
    def forward(ctx: Any, distance: torch.Tensor) -> torch.Tensor:
        ctx.save_for_backward(distance)
        return (distance > 0).to(distance.dtype)

    @staticmethod
    def backward(ctx: Any, grad: torch.Tensor) -> torch.Tensor:
        (distance,) = ctx.saved_tensors
        return grad / (1.0 + (3.0 * distance) ** 2)


class Accumulator(nn.Module):
    """Spiking neurons on either side hear the clicks of that side; the evidence for a side sums what they say.

    The two sides mirror each other: they share their weights, so neither is preferred before anything is heard.
    """

    def __init__(self, hidden: int = 16, leak: float = 0.9, memory: float = 0.9995, gain: float = 0.02) -> None:
        super().__init__()
        self.hidden, self.leak, self.memory, self.gain = hidden, leak, memory, gain
        self.clicks = nn.Linear(1, hidden)
        self.lateral = nn.Linear(hidden, hidden, bias=False)
        self.decision = nn.Linear(hidden, 1, bias=False)
        nn.init.zeros_(self.decision.weight)  # undecided at first

    def forward(self, clicks: torch.Tensor) -> torch.Tensor:
        """Returns the evidence for left and right at every step, [time, batch, 2], for clicks [time, batch, 2]."""
        batch = clicks.shape[1]
        membrane = clicks.new_zeros(batch, 2, self.hidden)
        fired = clicks.new_zeros(batch, 2, self.hidden)
        evidence = clicks.new_zeros(batch, 2)
        history = []
        for click in clicks:
            current = self.clicks(click.unsqueeze(2)) + self.lateral(fired)
            membrane = self.leak * membrane + current - fired.detach()
            fired = Spike.apply(membrane - 1.0)
            evidence = self.memory * evidence + self.gain * self.decision(fired).squeeze(2)
            history.append(evidence)
        return torch.stack(history)


def draw_trials(batch: int, generator: torch.Generator) -> tuple[torch.Tensor, torch.Tensor]:
    """Returns click probabilities per step [batch, 2] and the side that has more, [batch]: 0 left, 1 right."""
    side = torch.randint(2, (batch,), generator=generator)
    difference = 0.02 + 0.06 * torch.rand(batch, generator=generator)
    right = 0.15 + torch.where(side == 1, 0.5, -0.5) * difference
    return torch.stack([0.3 - right, right], dim=1), side


def clicks_of(chance: torch.Tensor, steps: int, generator: torch.Generator) -> Iterator[torch.Tensor]:
    """Yields the clicks of one step after another, [batch, 2]."""
    for _ in range(steps):
        yield torch.bernoulli(chance, generator=generator)


def run_trials(
    net: Any, batch: int, steps: int, segment: int, generator: torch.Generator, optimizer: torch.optim.Optimizer | None
) -> tuple[float, float]:
    """Streams one batch of trials and, with an optimizer, learns after every segment.

    Returns:
        Mean loss of the last segment, and the share of trials decided correctly at the end.
    """
    chance, side = draw_trials(batch, generator)
    net.reset()
    loss, evidence, last = torch.zeros(()), torch.zeros(batch, 2), 0.0
    for step, evidence in enumerate(net.stream(clicks_of(chance, steps, generator)), start=1):
        loss = loss + functional.cross_entropy(evidence, side) / segment
        if step % segment == 0:
            last = float(loss.detach())
            if optimizer is not None:
                optimizer.zero_grad()
                loss.backward()
                optimizer.step()
            loss = torch.zeros(())
    return last, float((evidence.argmax(1) == side).float().mean())


def main(argv: Sequence[str] | None = None) -> tuple[float, float]:
    """Trains; returns the share of correct decisions before and after."""
    parser = argparse.ArgumentParser(description="Which side clicked more often, over 10,000 streamed steps?")
    parser.add_argument("--steps", type=int, default=10_000, help="time steps of a trial")
    parser.add_argument("--rounds", type=int, default=4, help="batches of trials to learn from")
    parser.add_argument("--batch", type=int, default=64, help="trials that run at the same time")
    parser.add_argument("--hidden", type=int, default=16, help="neurons on either side")
    parser.add_argument("--segment", type=int, default=250, help="steps between two updates of the weights")
    parser.add_argument("--seed", type=int, default=0)
    options = parser.parse_args(argv)
    torch.manual_seed(options.seed)
    generator = torch.Generator().manual_seed(options.seed)
    model = Accumulator(options.hidden)
    net = tracecompile.convert(model, torch.bernoulli(torch.full((8, options.batch, 2), 0.15), generator=generator))
    optimizer = torch.optim.Adam(model.parameters(), lr=2e-3)

    def test() -> float:
        net.eval()
        with torch.no_grad():
            fixed = torch.Generator().manual_seed(options.seed + 1)
            return run_trials(net, 256, options.steps, options.segment, fixed, None)[1]

    before = test()
    for turn in range(options.rounds):
        start = time.perf_counter()
        net.train()
        loss, correct = run_trials(net, options.batch, options.steps, options.segment, generator, optimizer)
        seconds = time.perf_counter() - start
        held = live_state_bytes(net) / 1e3
        print(f"round {turn + 1}: loss {loss:.3f}, {correct:.1%} correct, {held:.1f} kB of state, {seconds:.1f} s")
    after = test()
    print(f"{options.steps:,} steps per trial: {before:.1%} correct before training, {after:.1%} after")
    return before, after


if __name__ == "__main__":
    main()
