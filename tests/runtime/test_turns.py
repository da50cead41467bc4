"""What a step does in order, in pieces of several steps: running statistics and normalisations that are used twice."""

from __future__ import annotations

import copy
from pathlib import Path

import pytest
import torch
from support.program import FastSigmoid
from torch import Tensor, nn
from torch.nn import functional as F

import tracecompile

INPUTS, HIDDEN, OUTPUTS = 5, 6, 3
ROUNDING = 1e-12
SIZES = ((11, 7), (6, 3))
"""Steps and samples that no conversion has seen; those of the first are no multiple of any piece."""


def fire(mem: Tensor, current: Tensor) -> tuple[Tensor, Tensor]:
    charged = 0.8 * mem + current
    spikes = FastSigmoid.apply(charged - 0.4)
    return charged - 0.4 * spikes, spikes


class Net(nn.Module):
    """Three layers of leaky neurons and a readout, with hooks for what a step does in order."""

    def __init__(self) -> None:
        super().__init__()
        self.below, self.middle = nn.Linear(INPUTS, HIDDEN), nn.Linear(HIDDEN, HIDDEN)
        self.above, self.readout = nn.Linear(HIDDEN, HIDDEN), nn.Linear(HIDDEN, OUTPUTS)
        self.register_buffer("average", torch.zeros(HIDDEN))
        self.register_buffer("other", torch.ones(HIDDEN))
        self.register_buffer("count", torch.zeros((), dtype=torch.long))

    def first(self, x_t: Tensor) -> Tensor:
        return self.below(x_t)

    def second(self, spikes: Tensor) -> Tensor:
        return self.middle(spikes)

    def third(self, spikes: Tensor) -> Tensor:
        return self.above(spikes)

    def moved(self, spikes: Tensor) -> None:
        """Moves what the layers of the next step read."""

    def forward(self, x: Tensor) -> Tensor:
        one = two = three = x.new_zeros(x.shape[1], HIDDEN)
        total = x.new_zeros(x.shape[1], OUTPUTS)
        for x_t in x:
            one, spikes = fire(one, self.first(x_t))
            two, spikes = fire(two, self.second(spikes))
            three, spikes = fire(three, self.third(spikes))
            self.moved(spikes)
            total = total + self.readout(spikes)
        return total / x.shape[0]


# No layer needs what is moved.


class Watched(Net):
    """Averages a current, and counts the steps."""

    def first(self, x_t: Tensor) -> Tensor:
        current = self.below(x_t)
        self.average = 0.9 * self.average + 0.1 * current.mean(0).detach()
        self.count = self.count + 1
        return current


class WatchedTwice(Net):
    """Averages the spikes of two layers, the one by the average of the other."""

    def second(self, spikes: Tensor) -> Tensor:
        self.other = 0.7 * self.other + 0.3 * spikes.mean(0).detach() + 0.1 * self.average
        return self.middle(spikes)

    def third(self, spikes: Tensor) -> Tensor:
        self.average = 0.5 * self.average + 0.5 * spikes.mean(0).detach() * self.other
        return self.above(spikes)


# Layers read it.


class Centred(Net):
    """A current less its own running average."""

    def second(self, spikes: Tensor) -> Tensor:
        current = self.middle(spikes)
        self.average = 0.9 * self.average + 0.1 * current.mean(0).detach()
        return current - self.average


class Homeostatic(Net):
    """The middle layer is held back by how much the upper one has fired, an average of an average."""

    def second(self, spikes: Tensor) -> Tensor:
        return self.middle(spikes) - 2 * self.average

    def moved(self, spikes: Tensor) -> None:
        self.other = 0.5 * self.other + 0.5 * spikes.mean(0).detach()
        self.average = 0.8 * self.average + 0.2 * self.other


class HeldBackByAll(Net):
    """Every layer reads what the last one moves."""

    def first(self, x_t: Tensor) -> Tensor:
        return self.below(x_t) - self.average

    def moved(self, spikes: Tensor) -> None:
        self.average = 0.8 * self.average + 0.2 * spikes.mean(0).detach()

    def forward(self, x: Tensor) -> Tensor:
        one = two = delayed = x.new_zeros(x.shape[1], HIDDEN)
        total = x.new_zeros(x.shape[1], HIDDEN)
        for x_t in x:
            one, spikes = fire(one, self.first(x_t))
            two, delayed = fire(two, self.second(spikes) + self.third(delayed))
            self.moved(delayed)
            total = total + delayed
        return total / x.shape[0]


# One normalisation, used twice.


class NormedTwice(Net):
    """Two layers share a normalisation; a layer between them has none."""

    def __init__(self) -> None:
        super().__init__()
        self.norm = nn.BatchNorm1d(HIDDEN)

    def first(self, x_t: Tensor) -> Tensor:
        return self.norm(self.below(x_t))

    def third(self, spikes: Tensor) -> Tensor:
        return self.norm(self.above(spikes) + 0.5)


class SampleNormedTwice(Net):
    """The same, by a normalisation of every sample, whose statistics move all the same."""

    def __init__(self) -> None:
        super().__init__()
        self.norm = nn.InstanceNorm1d(2, track_running_stats=True)

    def first(self, x_t: Tensor) -> Tensor:
        return self.norm(self.below(x_t).view(-1, 2, HIDDEN // 2)).flatten(1)

    def second(self, spikes: Tensor) -> Tensor:
        return self.norm(self.middle(spikes).view(-1, 2, HIDDEN // 2) * 2).flatten(1)


class CalledTwice(Net):
    """Two calls of the function, on the same statistics."""

    def first(self, x_t: Tensor) -> Tensor:
        return F.batch_norm(self.below(x_t), self.average, self.other, training=self.training, momentum=0.3)

    def second(self, spikes: Tensor) -> Tensor:
        return F.batch_norm(self.middle(spikes), self.average, self.other, training=self.training)


class NormedWithin(Net):
    """A recurrent layer that normalises what comes from below, and what it says itself."""

    def __init__(self) -> None:
        super().__init__()
        self.norm = nn.BatchNorm1d(HIDDEN)

    def forward(self, x: Tensor) -> Tensor:
        one = two = spikes = x.new_zeros(x.shape[1], HIDDEN)
        total = x.new_zeros(x.shape[1], OUTPUTS)
        for x_t in x:
            one, lower = fire(one, self.below(x_t))
            two, spikes = fire(two, self.norm(self.middle(lower)) + self.norm(self.above(spikes)))
            total = total + self.readout(spikes)
        return total / x.shape[0]


TURNS: dict[type[Net], list[int]] = {
    Watched: [],
    WatchedTwice: [],
    Centred: [2],
    Homeostatic: [1, 2],
    HeldBackByAll: [0, 1],
    NormedTwice: [0, 1, 2],
    SampleNormedTwice: [0, 1],
    CalledTwice: [0, 1],
    NormedWithin: [1],
}
"""Units that take turns, by number, of each model."""

Found = tuple[Tensor, dict[str, Tensor], dict[str, Tensor]]
"""Outputs, gradients and buffers."""


def drawn(steps: int, batch: int) -> Tensor:
    return 2 * torch.rand(steps, batch, INPUTS, dtype=torch.float64, generator=torch.Generator().manual_seed(steps))


def made(kind: type[Net]) -> Net:
    torch.manual_seed(0)
    return kind().double()


def trained(module: nn.Module, steps: int, batch: int) -> Found:
    """Runs two sequences, of which the second goes on from the statistics of the first."""
    module.zero_grad()
    for _ in range(2):
        outputs = module(drawn(steps, batch))
        outputs.square().sum().backward()
    gradients = {name: p.grad.clone() for name, p in module.named_parameters() if p.grad is not None}
    return outputs.detach(), gradients, {name: buffer.clone() for name, buffer in module.named_buffers()}


def require_near(found: Found, expected: Found) -> None:
    torch.testing.assert_close(found[0], expected[0], rtol=ROUNDING, atol=ROUNDING)
    assert [set(each) for each in found[1:]] == [set(each) for each in expected[1:]]
    for name, value in expected[2].items():
        torch.testing.assert_close(found[2][name], value, rtol=ROUNDING, atol=ROUNDING)
    for name, value in expected[1].items():
        # What is added before a normalisation has no gradient but rounding.
        assert (found[1][name] - value).norm() <= 1e-10 * value.norm() + ROUNDING, name


@pytest.mark.parametrize("kind", TURNS)
def test_single_steps_move_statistics_as_the_model_does(kind: type[Net]) -> None:
    model = made(kind)
    net = tracecompile.convert(made(kind), drawn(9, 4), backend="eager", chunk=1, bins=max(SIZES)[0])
    learned: set[str] = set()
    for size in SIZES:
        expected, found = trained(model, *size), trained(net, *size)
        assert torch.equal(found[0], expected[0])
        assert all(torch.equal(found[2][name], value) for name, value in expected[2].items())
        require_near(found, expected)
        learned |= {name for name, value in expected[1].items() if value.abs().max() > 1e-3}
    assert learned >= {name for name in expected[1] if name.endswith("weight")}


@pytest.mark.parametrize(("chunk", "bins"), [(4, 1), (5, 2)])
@pytest.mark.parametrize("kind", TURNS)
def test_pieces_leave_what_single_steps_leave(kind: type[Net], chunk: int, bins: int) -> None:
    model = made(kind)
    nets = [tracecompile.convert(made(kind), drawn(9, 4), backend="eager", chunk=n, bins=bins) for n in (1, chunk)]
    for size in SIZES:
        expected, found = (trained(net, *size) for net in nets)
        require_near(found, expected)
        of_model = trained(model, *size)
        require_near((found[0], {}, found[2]), (of_model[0], {}, of_model[2]))
    execution = nets[1].report.execution
    assert execution is not None
    assert execution.chunk == (1 if kind is HeldBackByAll else chunk)


@pytest.mark.parametrize("kind", TURNS)
def test_only_what_is_tied_takes_turns(kind: type[Net]) -> None:
    net = tracecompile.convert(made(kind), drawn(9, 4), chunk=4)
    units = net.program.units
    assert [unit.layers for unit in units] == [block.layers for block in net.program.blocks]
    assert [number for number, unit in enumerate(units) if unit.in_turn] == TURNS[kind]
    assert all((unit.fold is None) == bool(unit.alone) for unit in units)
    assert sum(unit.moves is not None for unit in units) == (
        kind in (Watched, WatchedTwice, Homeostatic, HeldBackByAll)
    )
    assert ("Every time step is taken by itself" in str(net.report)) == (kind is HeldBackByAll)
    assert ("one step at a time" in str(net.report)) == (0 < len(TURNS[kind]) < len(units))


@pytest.mark.parametrize("kind", [Watched, Homeostatic, NormedTwice])
def test_a_saved_network_moves_them_as_well(kind: type[Net], tmp_path: Path) -> None:
    net = tracecompile.convert(made(kind), drawn(9, 4), backend="eager", chunk=4)
    tracecompile.save(net, tmp_path)
    require_near(trained(tracecompile.load(tmp_path), 11, 7), trained(net, 11, 7))


@pytest.mark.parametrize("kind", [Centred, SampleNormedTwice])
def test_compiled_scans_stand_beside_what_takes_turns(kind: type[Net]) -> None:
    expected = trained(made(kind), 11, 7)
    net = tracecompile.convert(made(kind), drawn(9, 4), backend="inductor", chunk=4)
    found = trained(net, 11, 7)
    require_near((found[0], {}, found[2]), (expected[0], {}, expected[2]))
    execution = net.report.execution
    assert execution is not None
    assert (execution.backend, execution.compiled > 0) == ("inductor", True)


class OneStep(Net):
    """One time step a call, with statistics that move."""

    def __init__(self) -> None:
        super().__init__()
        self.mem: Tensor | None = None

    def reset(self) -> None:
        self.mem = None

    def forward(self, x_t: Tensor) -> Tensor:
        mem = x_t.new_zeros(len(x_t), HIDDEN) if self.mem is None else self.mem
        self.mem, spikes = fire(mem, self.first(x_t) - self.average)
        self.average = 0.8 * self.average + 0.2 * spikes.mean(0).detach()
        return self.readout(spikes)


def test_the_calls_of_a_step_model_are_units_of_one_step() -> None:
    model, x = made(OneStep), drawn(8, 4)
    net = tracecompile.convert(copy.deepcopy(model), x[0], chunk=4)
    assert [unit.layers for unit in net.program.units] == [block.layers for block in net.program.blocks]
    assert {unit.alone for unit in net.program.units} == {"each is a call of its own"}
    assert all(unit.in_turn for unit in net.program.units)
    assert "Nothing is computed in chunks" in str(net.report)
    model.reset()
    net.reset()
    assert all(torch.equal(net(x_t), model(x_t)) for x_t in x)
    assert torch.equal(dict(net.named_buffers())["average"], model.average)
