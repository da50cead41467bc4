"""Work on whole sequences: before the loop, between one loop over time and the next, and after the last."""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

import pytest
import torch
from support.comparisons import require_gradients, require_values
from support.oracle import HIDDEN, INPUTS, OUTPUTS, Program, require_right, spike
from torch import Tensor, fx, nn

import tracecompile


def louder(model: nn.Module, gain: float = 2.0) -> nn.Module:
    """The model with its matrices times ``gain``, so that deep layers fire."""
    with torch.no_grad():
        for parameter in model.parameters():
            if parameter.dim() > 1:
                parameter.mul_(gain)
    return model


def fire(currents: Any, threshold: float = 0.6) -> list[Tensor]:
    """Leaky neurons over a sequence of currents."""
    v, spikes = torch.zeros_like(currents[0]), []
    for current in currents:
        v = 0.8 * v + current
        z = spike(v - threshold)
        v = v - threshold * z
        spikes.append(z)
    return spikes


class Net(nn.Module):
    """Two matrices, a normalisation and a readout, for the models below."""

    def __init__(self) -> None:
        super().__init__()
        self.inp, self.hidden = nn.Linear(INPUTS, HIDDEN), nn.Linear(HIDDEN, HIDDEN)
        self.out = nn.Linear(HIDDEN, OUTPUTS)


# Before the loop.


class NormalisedSum(Net):
    """Two products of all steps, one normalised, added before the loop."""

    def __init__(self) -> None:
        super().__init__()
        self.norm, self.skip = nn.LayerNorm(HIDDEN), nn.Parameter(0.4 * torch.randn(INPUTS, HIDDEN))
        del self.hidden

    def forward(self, x: Tensor) -> Any:
        currents = self.norm(self.inp(x)) + torch.tensordot(x, self.skip, 1)
        total: Any = 0.0
        for z in fire(currents, 1.0):
            total = total + self.out(z)
        return total


class Centred(nn.Module):
    """Currents less their mean over time, which is one number per neuron."""

    def __init__(self) -> None:
        super().__init__()
        self.inp, self.out = nn.Linear(INPUTS, HIDDEN, bias=False), nn.Linear(HIDDEN, OUTPUTS)

    def forward(self, x: Tensor) -> Any:
        currents = self.inp(x)
        return torch.stack([self.out(z) for z in fire(currents - currents.mean(0))])


class Gates(nn.Module):
    """One product gives current and gain of every neuron; both are taken apart along the last axis."""

    def __init__(self) -> None:
        super().__init__()
        self.inp, self.out = nn.Linear(INPUTS, 2 * HIDDEN), nn.Linear(HIDDEN, OUTPUTS)

    def forward(self, x: Tensor) -> Any:
        current, gain = self.inp(x).chunk(2, dim=-1)
        return torch.stack([self.out(z) for z in fire(current * torch.sigmoid(gain), 0.5)])


class BatchFirst(Net):
    """Time is the second axis; batch and time are made one around a convolution, batch first."""

    def __init__(self) -> None:
        super().__init__()
        self.conv = nn.Conv1d(1, 2, 3, padding=1)
        self.inp = nn.Linear(2 * INPUTS, HIDDEN)
        del self.hidden

    def forward(self, x: Tensor) -> Any:
        batch, steps = x.shape[:2]
        features = self.conv(x.reshape(batch * steps, 1, INPUTS)).flatten(1)
        currents = self.inp(features).view(batch, steps, HIDDEN).transpose(0, 1)
        return torch.stack([self.out(z) for z in fire(currents)], dim=1)


# Between loops.


class BranchesJoined(Net):
    """Two layers of neurons see the input; their recordings are joined and weighted as one."""

    def __init__(self) -> None:
        super().__init__()
        self.both = nn.Linear(2 * HIDDEN, HIDDEN)
        self.other = nn.Linear(INPUTS, HIDDEN)
        del self.hidden

    def forward(self, x: Tensor) -> Any:
        one, other = torch.stack(fire(self.inp(x))), torch.stack(fire(self.other(x), 0.9))
        joined = torch.cat([one, other], dim=2)
        return self.out(torch.stack(fire(self.both(joined)))).mean(0)


class Mixture(Net):
    """Softmax over channels of a recording chooses among its neurons, within each step."""

    def forward(self, x: Tensor) -> Any:
        z = torch.stack(fire(self.inp(x)))
        weights = torch.softmax(self.hidden(z).unflatten(-1, (2, HIDDEN // 2)), dim=3)
        mixed = (weights * z.view(x.shape[0], x.shape[1], 2, HIDDEN // 2)).flatten(2)
        return self.out(torch.stack(fire(4 * mixed))).sum(0)


class Merged(nn.Module):
    """A stack of layers without state sees time and batch as one axis, between two recordings that are concatenated."""

    def __init__(self) -> None:
        super().__init__()
        self.inp, self.out = nn.Linear(INPUTS, HIDDEN), nn.Linear(HIDDEN, OUTPUTS)
        self.between = nn.Sequential(nn.Linear(HIDDEN, HIDDEN), nn.GroupNorm(2, HIDDEN), nn.ReLU())

    def forward(self, x: Tensor) -> Any:
        spikes = torch.cat([z[None] for z in fire(self.inp(x))])
        flat = self.between(spikes.flatten(0, 1))
        return self.out(torch.cat(fire(flat.unflatten(0, spikes.shape[:2])))).view(*x.shape[:2], OUTPUTS).mean(0)


class ThreeLayers(Net):
    """A loop over layers around the loop over time, with products of the whole recording in between."""

    def forward(self, x: Tensor) -> Any:
        for layer in (self.inp, self.hidden, self.out):
            x = torch.stack(fire(layer(x)))
        return x.sum(0)


# After the last loop.


class NormalisedReadout(Net):
    """A readout of the whole recording, normalised, of which the largest value over time counts."""

    def __init__(self) -> None:
        super().__init__()
        self.norm = nn.LayerNorm(OUTPUTS)
        del self.hidden

    def forward(self, x: Tensor) -> Any:
        v, record = x.new_zeros(x.shape[1], HIDDEN), []
        for x_t in x:
            v = 0.8 * v + self.inp(x_t)
            z = spike(v - 0.6)
            v = v - 0.6 * z
            record.append(z)
        return self.norm(self.out(torch.stack(record))).max(0).values


class SummedReadouts(Net):
    """Two readouts of one recording, one of them of its neurons in two groups."""

    def __init__(self) -> None:
        super().__init__()
        self.group = nn.Linear(HIDDEN // 2, OUTPUTS)
        del self.hidden

    def forward(self, x: Tensor) -> Any:
        v, record = x.new_zeros(x.shape[1], HIDDEN), []
        for t in range(x.shape[0]):
            v = 0.8 * v + self.inp(x[t])
            z = spike(v - 0.6)
            v = v * (1 - z)
            record.append(z)
        spikes = torch.stack(record)
        grouped = self.group(spikes.reshape(x.shape[0], -1, 2, HIDDEN // 2)).mean(2)
        return self.out(spikes) + grouped


class AroundBothLoops(Net):
    """What goes into each loop is added to what comes out of it."""

    def forward(self, x: Tensor) -> Any:
        first = self.inp(x)
        second = self.hidden(torch.stack(fire(first)) + first)
        return self.out(torch.stack(fire(second)) + second)


def batch_first(steps: int, batch: int) -> Tensor:
    return 2 * torch.randn(batch, steps, INPUTS)


RIGHT = {
    "normalised sum": Program(NormalisedSum),
    "centred": Program(Centred),
    "gates": Program(Gates),
    "batch first": Program(BatchFirst, inputs=batch_first),
    "branches joined": Program(lambda: louder(BranchesJoined())),
    "mixture": Program(lambda: louder(Mixture())),
    "merged": Program(lambda: louder(Merged())),
    "three layers": Program(lambda: louder(ThreeLayers())),
    "normalised readout": Program(NormalisedReadout),
    "summed readouts": Program(SummedReadouts),
    "around both loops": Program(AroundBothLoops),
}


@pytest.mark.parametrize("program", RIGHT.values(), ids=RIGHT.keys())
def test_the_net_is_the_model(program: Program) -> None:
    require_right(program)


# What leaves the numbers of one example as they are, and not those of another batch.


class AcrossSamples(Net):
    """Spikes, of time, samples and neurons, on which something is done between two loops."""

    def __init__(self, between: Callable[[Tensor], Tensor]) -> None:
        super().__init__()
        self.between = between

    def forward(self, x: Tensor) -> Any:
        spikes = self.between(torch.stack(fire(self.inp(x))))
        return self.out(torch.stack(fire(self.hidden(spikes))))


ACROSS_SAMPLES: dict[str, tuple[int, Callable[[Tensor], Tensor]]] = {
    "a roll": (2, lambda s: s.roll(2, 1)),
    "the last three": (2, lambda s: s[:, -3:]),
    "the first": (1, lambda s: s.narrow(1, 0, 1)),
    "a mean": (1, lambda s: s.mean(1, keepdim=True)),
    "a running sum": (1, lambda s: s.cumsum(1)),
    "sorted": (1, lambda s: s.sort(1)[0]),
    "the largest": (1, lambda s: s.topk(1, 1)[0]),
    "turned round": (1, lambda s: s.flip(1)),
}


@pytest.mark.parametrize("what", ACROSS_SAMPLES)
def test_what_a_small_batch_hides(what: str) -> None:
    samples, between = ACROSS_SAMPLES[what]
    require_right(Program(lambda: louder(AcrossSamples(between)), example=(6, samples)))


# What no single step can do.


class TemporalConvolution(Net):
    """A convolution along time between two loops."""

    def __init__(self) -> None:
        super().__init__()
        self.conv = nn.Conv1d(HIDDEN, HIDDEN, 3, padding=1)
        del self.hidden

    def forward(self, x: Tensor) -> Any:
        z = torch.stack(fire(self.inp(x)))
        currents = self.conv(z.permute(1, 2, 0)).permute(2, 0, 1)
        return self.out(torch.stack(fire(currents))).mean(0)


class Multiplied(Net):
    """Currents are multiplied over time before the loop."""

    def __init__(self) -> None:
        super().__init__()
        del self.hidden

    def forward(self, x: Tensor) -> Any:
        currents = self.inp(x).cumprod(0)
        return self.out(torch.stack(fire(currents))).mean(0)


class DroppedOut(Net):
    """A mask is drawn for all steps of a recording at once."""

    def forward(self, x: Tensor) -> Any:
        z = torch.stack(fire(self.inp(x)))
        kept = nn.functional.dropout(self.hidden(z), 0.5, self.training)
        return self.out(torch.stack(fire(kept))).mean(0)


MIXED = {
    "a convolution along time": TemporalConvolution,
    "a product that runs": Multiplied,
    "one mask for all steps": DroppedOut,
}


@pytest.mark.parametrize("make", MIXED.values(), ids=MIXED.keys())
def test_what_mixes_steps_is_computed_of_all_of_them(make: Callable[[], nn.Module]) -> None:
    # The memory of these layers grows, as the report says.
    require_right(Program(lambda: louder(make())), parts=(require_values, require_gradients))


# Conversion time.


def nodes_made(model: nn.Module, x: Tensor, monkeypatch: pytest.MonkeyPatch) -> int:
    """Returns how many nodes a conversion makes: what it costs, whatever the machine."""
    made = 0
    create = fx.Graph.create_node

    def counted(self: fx.Graph, *args: Any, **kwargs: Any) -> fx.Node:
        nonlocal made
        made += 1
        return create(self, *args, **kwargs)

    with monkeypatch.context() as patch:
        patch.setattr(fx.Graph, "create_node", counted)
        tracecompile.convert(model, x, backend="eager")
    return made


class Blocks(Net):
    """Residual blocks, each over the whole sequence."""

    def __init__(self, blocks: int) -> None:
        super().__init__()
        self.blocks = nn.ModuleList([nn.Linear(HIDDEN, HIDDEN) for _ in range(blocks)])
        del self.hidden

    def forward(self, x: Tensor) -> Any:
        h = torch.stack(fire(self.inp(x)))
        for block in self.blocks:
            h = h + torch.stack(fire(block(h)))
        return self.out(h).mean(0)


class Recurrent(Net):
    """A recurrent layer of a fixed number of steps, its input weighted for all of them before."""

    def __init__(self, steps: int) -> None:
        super().__init__()
        self.steps = steps

    def forward(self, x: Tensor) -> Any:
        currents = torch.einsum("abc,dc->abd", x, self.inp.weight)
        v, z, record = x.new_zeros(x.shape[0], HIDDEN), x.new_zeros(x.shape[0], HIDDEN), []
        for t in range(self.steps):
            v = 0.9 * v * (1 - z.detach()) + currents[:, t] + self.hidden(z)
            z = spike(v - 1.0)
            record.append(z)
        return self.out(torch.stack(record, dim=1))


def test_twice_as_many_blocks_take_twice_as_long_to_convert(monkeypatch: pytest.MonkeyPatch) -> None:
    x = 2 * torch.randn(6, 2, INPUTS)
    few, many = (nodes_made(louder(Blocks(blocks)), x, monkeypatch) for blocks in (4, 8))
    assert many < 2.1 * few


def test_twice_as_many_fixed_steps_take_twice_as_long_to_convert(monkeypatch: pytest.MonkeyPatch) -> None:
    few, many = (nodes_made(Recurrent(steps), 2 * torch.randn(2, steps, INPUTS), monkeypatch) for steps in (24, 48))
    assert many < 2.1 * few


class MergedConvolutions(nn.Module):
    """Time and batch are one axis to a convolution, before the first loop and between the two."""

    def __init__(self, apart: Callable[[Tensor, int, int], Tensor]) -> None:
        super().__init__()
        self.inp, self.hidden = nn.Linear(INPUTS, HIDDEN), nn.Linear(HIDDEN, HIDDEN)
        self.first, self.second = nn.Conv1d(1, 1, 3, padding=1), nn.Conv1d(1, 2, 3, padding=1)
        self.out, self.apart = nn.Linear(HIDDEN, OUTPUTS), apart

    def run(self, currents: Tensor) -> Tensor:
        """Leaky neurons; everything new is made like the currents."""
        v, spikes = currents.new_zeros(currents.shape[1:]), []
        for t in range(currents.shape[0]):
            v = 0.8 * v + currents[t]
            z = spike(v - 0.3)
            v = torch.where(z > 0, currents.new_zeros(1), v)
            spikes.append(z)
        return torch.stack(spikes)

    def forward(self, x: Tensor) -> Any:
        steps, batch = x.shape[:2]
        h = self.apart(self.first(self.inp(x).reshape(steps * batch, 1, HIDDEN)), steps, batch)
        h = self.second(self.run(h).flatten(0, 1).unsqueeze(1)).sum(1)
        s = self.run(self.hidden(h.view(steps, batch, HIDDEN)))
        return self.out(s).select(0, -1), s.mean(0)


APART: dict[str, Callable[[Tensor, int, int], Tensor]] = {
    "reshape": lambda h, steps, batch: h.reshape(steps, batch, -1),
    "unflatten": lambda h, steps, batch: h.flatten(1).unflatten(0, (steps, batch)),
    "squeeze": lambda h, steps, batch: h.squeeze(1).view(-1, batch, HIDDEN),
}


@pytest.mark.parametrize("way", APART)
def test_time_and_batch_in_one_axis(way: str) -> None:
    require_right(Program(lambda: louder(MergedConvolutions(APART[way]))))


class TimeInTheBatch(nn.Module):
    """Batch and time share the first axis of the input, as in networks meant for a chip: only the model knows how."""

    samples = 2

    def __init__(self) -> None:
        super().__init__()
        self.inp, self.out = nn.Linear(INPUTS, HIDDEN), nn.Linear(HIDDEN, OUTPUTS)

    def forward(self, x: Tensor) -> Tensor:
        currents = self.inp(x).unflatten(0, (self.samples, -1))
        v, spikes = torch.zeros_like(currents[:, 0]), []
        for t in range(currents.shape[1]):
            v = 0.8 * v + currents[:, t]
            z = spike(v - 0.6)
            v = v - 0.6 * z
            spikes.append(z)
        return self.out(torch.stack(spikes, 1).flatten(0, 1))


def test_time_within_the_batch() -> None:
    def rows(steps: int, batch: int) -> Tensor:
        return 2 * torch.randn(batch * steps, INPUTS)

    require_right(Program(TimeInTheBatch, rows, fixed_batch=TimeInTheBatch.samples))
