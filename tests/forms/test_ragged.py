"""Batches of sequences of several lengths, padded, and episodes that end within a batch."""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

import pytest
import torch
import torch.nn.functional as F
from support.comparisons import require_chunks, require_flat, require_gradients, require_values
from support.oracle import HIDDEN, INPUTS, OUTPUTS, Program, require_refused, spike
from torch import Tensor, nn

import tracecompile
import tracecompile.nn as snn

PARTS = (require_values, require_gradients, require_chunks, require_flat)


def lengths_of(steps: int, batch: int) -> Tensor:
    """Returns one length a sample, the longest among them."""
    found = 1 + torch.arange(batch) * (steps - 1) // max(batch - 1, 1)
    return found.flip(0)


def padded(steps: int, batch: int) -> tuple[Tensor, Tensor]:
    """Returns sequences with zeros behind their ends, and their lengths."""
    lengths = lengths_of(steps, batch)
    x = 2 * torch.randn(steps, batch, INPUTS)
    return x * valid_of(x, lengths).unsqueeze(2), lengths


def valid_of(x: Tensor, lengths: Tensor) -> Tensor:
    return torch.arange(x.shape[0], device=x.device)[:, None] < lengths


class Recurrent(nn.Module):
    """Recurrent neurons and a leaky readout; subclasses read it."""

    def __init__(self) -> None:
        super().__init__()
        self.below, self.above = nn.Linear(INPUTS, HIDDEN), nn.Linear(HIDDEN, OUTPUTS)
        self.neurons, self.readout = snn.RLIF(HIDDEN), snn.LI(OUTPUTS)

    def each(self, x: Tensor) -> Tensor:
        state, last, outs = None, None, []
        for x_t in x:
            spikes, state = self.neurons(3 * self.below(x_t), state)
            out, last = self.readout(self.above(spikes), last)
            outs.append(out)
        return torch.stack(outs)

    def forward(self, x: Tensor, lengths: Tensor) -> Tensor:
        return self.each(x)


class MaskedMean(Recurrent):
    def forward(self, x: Tensor, lengths: Tensor) -> Tensor:
        outs = self.each(x) * valid_of(x, lengths).to(x).unsqueeze(2)
        return outs.sum(0) / lengths.to(x).unsqueeze(1)


class MaskedInTheLoop(Recurrent):
    """The mask is made before the loop, as numbers; a slice of it is what a step multiplies by."""

    def forward(self, x: Tensor, lengths: Tensor) -> Tensor:
        state, last, total = None, None, x.new_zeros(x.shape[1], OUTPUTS)
        valid = valid_of(x, lengths).to(x)
        for t in range(x.shape[0]):
            spikes, state = self.neurons(3 * self.below(x[t]), state)
            out, last = self.readout(self.above(spikes), last)
            total = total + out * valid[t].unsqueeze(1)
        return total / lengths.to(x).unsqueeze(1)


class LastValid(Recurrent):
    def forward(self, x: Tensor, lengths: Tensor) -> Tensor:
        return self.each(x)[lengths - 1, torch.arange(x.shape[1])]


class LastValidGathered(Recurrent):
    def forward(self, x: Tensor, lengths: Tensor) -> Tensor:
        return self.each(x).gather(0, (lengths - 1)[None, :, None].expand(1, -1, OUTPUTS))[0]


class Frozen(nn.Module):
    """States stay as they are behind the end of a sample: the final ones are those of the last valid step."""

    def __init__(self) -> None:
        super().__init__()
        self.below, self.above = nn.Linear(INPUTS, HIDDEN), nn.Linear(HIDDEN, OUTPUTS)

    def forward(self, x: Tensor, lengths: Tensor) -> Tensor:
        v, y = x.new_zeros(x.shape[1], HIDDEN), x.new_zeros(x.shape[1], OUTPUTS)
        for x_t, valid in zip(x, valid_of(x, lengths), strict=True):
            following = 0.9 * v + self.below(x_t)
            z = spike(following - 0.5)
            v = torch.where(valid[:, None], following - z, v)
            y = torch.where(valid[:, None], 0.8 * y + self.above(z), y)
        return y


SINGLE: list[type[nn.Module]] = [MaskedMean, MaskedInTheLoop, LastValid, LastValidGathered, Frozen]


@pytest.mark.parametrize("model", [Recurrent, *SINGLE], ids=lambda model: model.__name__)
def test_padded_sequences(model: type[nn.Module]) -> None:
    # The product with the mask keeps that: a number a step and sample.
    program = Program(model, inputs=padded, runs=((3, 2), (11, 5), (23, 3)), flat=model is not MaskedMean)
    for part in PARTS:
        part(program, tracecompile.convert)


@pytest.mark.parametrize("model", SINGLE, ids=lambda model: model.__name__)
def test_every_sample_is_as_if_it_were_alone(model: type[nn.Module]) -> None:
    torch.manual_seed(0)
    made = model().double()
    net = tracecompile.convert(
        made, tuple(each.double() if each.is_floating_point() else each for each in padded(6, 2))
    )
    x, lengths = padded(17, 5)
    x = x.double()
    found = net(x, lengths)
    for sample, length in enumerate(lengths.tolist()):
        alone = made(x[:length, sample : sample + 1], lengths[sample : sample + 1])
        torch.testing.assert_close(found[sample], alone[0])


def ignoring_padding(scores: Tensor, targets: Tensor) -> Tensor:
    return F.cross_entropy(scores.flatten(0, 1), targets.flatten(), ignore_index=-100)


def weighted_by_mask(scores: Tensor, targets: Tensor) -> Tensor:
    each = F.cross_entropy(scores.movedim(2, 1), targets.clamp_min(0), reduction="none")
    valid = targets >= 0
    return (each * valid).sum() / valid.sum()


@pytest.mark.parametrize("loss_fn", [ignoring_padding, weighted_by_mask])
def test_targets_of_every_step(loss_fn: Callable[[Tensor, Tensor], Tensor]) -> None:
    """The loss is that of the valid steps alone, and padding teaches nothing."""
    torch.manual_seed(0)
    model = Recurrent().double()
    net = tracecompile.convert(model, (torch.randn(6, 2, INPUTS).double(), torch.tensor([6, 3])), bins=13)
    x, lengths = padded(13, 4)
    x, valid = x.double(), valid_of(x, lengths)
    targets = torch.randint(OUTPUTS, (13, 4)).masked_fill(~valid, -100)
    comparison = tracecompile.compare_gradients(model, net, (x, lengths), lambda scores: loss_fn(scores, targets))
    assert min(row.cosine for row in comparison.rows) > 1 - 1e-9
    assert all(abs(row.norm_ratio - 1) < 1e-9 for row in comparison.rows)

    def gradient_of(given: Tensor) -> list[Tensor]:
        model.zero_grad()
        loss_fn(net(given, lengths), targets).backward()
        return [each.grad.clone() for each in model.parameters() if each.grad is not None]

    noise = torch.randn(x.shape).double() * ~valid.unsqueeze(2)
    for one, other in zip(gradient_of(x), gradient_of(x + noise), strict=True):
        torch.testing.assert_close(one, other)


# Episodes that end.


def episodes(steps: int, batch: int) -> tuple[Tensor, Tensor]:
    """Returns an input, and where a sample begins anew."""
    return 2 * torch.randn(steps, batch, INPUTS), torch.rand(steps, batch) < 0.25


class Episodes(nn.Module):
    """States are cleared where the mask says so; spikes come back through weights."""

    def __init__(self) -> None:
        super().__init__()
        self.below, self.above = nn.Linear(INPUTS, HIDDEN), nn.Linear(HIDDEN, OUTPUTS)
        self.lateral = nn.Parameter(0.3 * torch.randn(HIDDEN, HIDDEN))

    def cleared(self, state: Tensor, done: Tensor) -> Tensor:
        return state * (1 - done.to(state).unsqueeze(1))

    def step(self, x: Tensor, done: Tensor, v: Tensor, z: Tensor) -> tuple[Tensor, Tensor, Tensor]:
        v, z = self.cleared(v, done), self.cleared(z, done)
        v = 0.9 * v + self.below(x) + z @ self.lateral
        z = spike(v - 0.5)
        return self.above(z), v - z, z

    def forward(self, x: Tensor, done: Tensor) -> Tensor:
        v = z = x.new_zeros(x.shape[1], HIDDEN)
        outs = []
        for x_t, done_t in zip(x, done, strict=True):
            out, v, z = self.step(x_t, done_t, v, z)
            outs.append(out)
        return torch.stack(outs)


class EpisodesByFill(Episodes):
    def cleared(self, state: Tensor, done: Tensor) -> Tensor:
        return state.masked_fill(done.unsqueeze(1), 0.0)


class EpisodesByStep(Episodes):
    """A step a call: the mask is an input of the step."""

    def __init__(self) -> None:
        super().__init__()
        self.v: Tensor | None = None
        self.z: Tensor | None = None

    def reset(self) -> None:
        self.v = self.z = None

    def forward(self, x: Tensor, done: Tensor) -> Tensor:
        if self.v is None or self.z is None:
            self.v = self.z = x.new_zeros(x.shape[0], HIDDEN)
        out, self.v, self.z = self.step(x, done, self.v, self.z)
        return out


@pytest.mark.parametrize("model", [Episodes, EpisodesByFill, EpisodesByStep], ids=lambda model: model.__name__)
def test_episodes_end_within_a_batch(model: type[nn.Module]) -> None:
    is_step = model is EpisodesByStep
    program = Program(model, inputs=episodes, step=is_step)
    for part in PARTS[: 2 if is_step else None]:
        part(program, tracecompile.convert)


def test_episodes_end_within_a_stream() -> None:
    torch.manual_seed(0)
    model = Episodes().double()
    net = tracecompile.convert(model, (torch.randn(6, 2, INPUTS).double(), torch.rand(6, 2) < 0.3), bins=9)
    x, done = episodes(9, 4)
    x = x.double()

    def gradient_of(outs: Tensor) -> list[Tensor]:
        model.zero_grad()
        (outs * torch.linspace(-1, 1, outs.numel()).reshape(outs.shape)).sum().backward()
        return [each.grad.clone() for each in model.parameters() if each.grad is not None]

    streamed = torch.stack(list(net.stream(zip(x, done, strict=True))))
    whole = model(x, done)
    torch.testing.assert_close(streamed, whole)
    for one, other in zip(gradient_of(streamed), gradient_of(whole), strict=True):
        torch.testing.assert_close(one, other, rtol=1e-9, atol=1e-12)


def test_each_episode_is_as_if_it_were_alone() -> None:
    torch.manual_seed(0)
    model = Episodes()
    net = tracecompile.convert(model, (torch.randn(6, 2, INPUTS), torch.rand(6, 2) < 0.3))
    x, _ = episodes(8, 3)
    done = torch.zeros(8, 3, dtype=torch.bool)
    done[5, 1] = True
    alone = model(x[5:, 1:2], done[5:, 1:2])
    torch.testing.assert_close(net(x, done)[5:, 1:2], alone)


class ComparedWithTheStepNumber(Recurrent):
    """What the step number decides within the body is refused, and told to come as an input."""

    def forward(self, x: Tensor, lengths: Tensor) -> Any:
        state, last, total = None, None, x.new_zeros(x.shape[1], OUTPUTS)
        for t in range(x.shape[0]):
            spikes, state = self.neurons(3 * self.below(x[t]), state)
            out, last = self.readout(self.above(spikes), last)
            total = total + out * (t < lengths).to(out).unsqueeze(1)
        return total


def test_a_mask_made_of_the_step_number_is_refused() -> None:
    refusal = require_refused(Program(ComparedWithTheStepNumber, inputs=padded), line="t < lengths")
    assert "as an input" in str(refusal)
