"""Buffers are the model's: statistics of one's own, and the same tensors on both sides."""

from __future__ import annotations

import copy
import pickle
from typing import Any

import pytest
import torch
from support.oracle import HIDDEN, INPUTS, OUTPUTS, PARTS, Program, require_refused, require_right, spike
from torch import Tensor, nn

import tracecompile

KEPT = ("rate", "seen", "steps", "running_")


class Net(nn.Module):
    """Leaky neurons and the mean of a readout, with places to look at the spikes."""

    def __init__(self) -> None:
        super().__init__()
        self.inp, self.out = nn.Linear(INPUTS, HIDDEN), nn.Linear(HIDDEN, OUTPUTS)
        self.remember()

    def remember(self) -> None:
        self.register_buffer("rate", torch.full((HIDDEN,), 0.25))

    def look(self, z: Tensor) -> None:
        """Is called with the spikes of every step."""

    def threshold(self) -> Any:
        return 0.5

    def forward(self, x: Tensor) -> Tensor:
        v, total = x.new_zeros(x.shape[1], HIDDEN), torch.zeros(x.shape[1], OUTPUTS)
        for x_t in x:
            v = 0.7 * v + self.inp(x_t)
            z = spike(v - self.threshold())
            v = v * (1 - z)
            self.look(z)
            total = total + self.out(z)
        return total / x.shape[0]


class Watched(Net):
    """An average of the firing rates that nothing reads."""

    def look(self, z: Tensor) -> None:
        if self.training:
            with torch.no_grad():
                self.rate.mul_(0.9).add_(0.1 * z.mean(0))


class Homeostatic(Net):
    """The average raises the threshold; assigned anew, detached."""

    def look(self, z: Tensor) -> None:
        if self.training:
            self.rate = 0.9 * self.rate + 0.1 * z.detach().mean(0)

    def threshold(self) -> Any:
        return 0.5 + self.rate


class HomeostaticInBothModes(Homeostatic):
    """Moved in evaluation as well, within a decorated method."""

    @torch.no_grad()
    def look(self, z: Tensor) -> None:
        self.rate.lerp_(z.mean(0), 0.1)


class RaisedInEvaluation(Watched):
    def threshold(self) -> Any:
        return 0.5 if self.training else 0.5 + self.rate


class Counting(Net):
    def remember(self) -> None:
        self.register_buffer("steps", torch.zeros((), dtype=torch.long))
        self.register_buffer("seen", torch.zeros(HIDDEN))

    def look(self, z: Tensor) -> None:
        with torch.no_grad():
            self.steps += 1
            self.seen += z.sum(0)


class LastRate(Net):
    """What the last step was like, without a memory."""

    def look(self, z: Tensor) -> None:
        self.rate.copy_(z.detach().mean(0))


class Standardised(Net):
    """Statistics of the whole input, once a sequence, before the loop."""

    def remember(self) -> None:
        self.register_buffer("running_mean", torch.zeros(INPUTS))
        self.register_buffer("running_var", torch.ones(INPUTS))

    def forward(self, x: Tensor) -> Tensor:
        if self.training:
            with torch.no_grad():
                self.running_mean.lerp_(x.mean((0, 1)), 0.1)
                self.running_var.lerp_(x.var((0, 1)), 0.1)
        return super().forward((x - self.running_mean) / self.running_var.sqrt())


class RateOfTheSequence(Net):
    """Moved once a sequence, after the loop, by what the loop recorded."""

    def forward(self, x: Tensor) -> Tensor:
        v, spikes = x.new_zeros(x.shape[1], HIDDEN), []
        for x_t in x:
            v = 0.7 * v + self.inp(x_t)
            z = spike(v - 0.5 - self.rate)
            v = v * (1 - z)
            spikes.append(z)
        recorded = torch.stack(spikes)
        if self.training:
            with torch.no_grad():
                self.rate.mul_(0.9).add_(0.1 * recorded.mean((0, 1)))
        output: Tensor = self.out(recorded).mean(0)
        return output


class NotABuffer(Watched):
    """The average is an attribute that nobody registered."""

    def remember(self) -> None:
        self.rate = torch.full((HIDDEN,), 0.25)

    def threshold(self) -> Any:
        return 0.5 + self.rate


FORMS = [Watched, Homeostatic, HomeostaticInBothModes, RaisedInEvaluation, Counting, LastRate, Standardised]
FORMS += [RateOfTheSequence, NotABuffer]


@pytest.mark.parametrize("kind", FORMS)
def test_statistics_of_ones_own(kind: type[Net]) -> None:
    parts = PARTS if kind is not RateOfTheSequence else PARTS[:3]
    require_right(Program(kind, statistics=KEPT, fires=False), parts=parts)


class OneStep(nn.Module):
    """One step per call of one of the models above."""

    def __init__(self, kind: type[Net]) -> None:
        super().__init__()
        self.net, self.mem = kind(), None

    def reset(self) -> None:
        self.mem = None

    def forward(self, x_t: Tensor) -> Tensor:
        net = self.net
        mem = x_t.new_zeros(x_t.shape[0], HIDDEN) if self.mem is None else self.mem
        mem = 0.7 * mem + net.inp(x_t)
        z = spike(mem - net.threshold())
        self.mem = mem * (1 - z)
        net.look(z)
        output: Tensor = net.out(z)
        return output


@pytest.mark.parametrize("kind", [Watched, Homeostatic, HomeostaticInBothModes, Counting, LastRate, NotABuffer])
def test_statistics_of_a_model_of_one_step(kind: type[Net]) -> None:
    require_right(Program(lambda: OneStep(kind), step=True, statistics=KEPT, fires=False))


def test_reset_leaves_statistics_alone() -> None:
    model = OneStep(Homeostatic)
    net = tracecompile.convert(model, torch.randn(2, INPUTS), backend="eager")
    for _ in range(3):
        net(2 * torch.randn(2, INPUTS))
    moved = model.net.rate.clone()
    assert not torch.equal(moved, torch.full((HIDDEN,), 0.25))
    net.reset()
    assert torch.equal(model.net.rate, moved)
    net.eval()
    net(2 * torch.randn(2, INPUTS))
    assert torch.equal(model.net.rate, moved)


class InADictionary(Net):
    def remember(self) -> None:
        self.held = {"rate": torch.zeros(HIDDEN)}

    def look(self, z: Tensor) -> None:
        self.held["rate"] = 0.9 * self.held["rate"] + 0.1 * z.detach().mean(0)

    def threshold(self) -> Any:
        return 0.5 + self.held["rate"]


def test_a_statistic_in_a_container_is_refused_at_its_line() -> None:
    require_refused(Program(InADictionary, fires=False), line='self.held["rate"] = ')


class OwnState(nn.Module):
    """A membrane in a buffer: a state, whatever it is called."""

    def __init__(self, persistent: bool = True) -> None:
        super().__init__()
        self.inp, self.out = nn.Linear(INPUTS, HIDDEN), nn.Linear(HIDDEN, OUTPUTS)
        self.register_buffer("mem", torch.zeros(1, HIDDEN), persistent=persistent)

    def reset(self) -> None:
        self.mem = torch.zeros(1, HIDDEN)

    def forward(self, x_t: Tensor) -> Tensor:
        mem = 0.7 * self.mem + self.inp(x_t)
        z = spike(mem - 0.5)
        self.mem = mem * (1 - z)
        output: Tensor = self.out(z)
        return output


def test_a_state_in_a_buffer_stands_in_its_place() -> None:
    require_right(Program(OwnState, step=True))
    model, twin = OwnState(), OwnState()
    twin.load_state_dict(model.state_dict())
    net = tracecompile.convert(model, torch.randn(2, INPUTS), backend="eager")
    x = 2 * torch.randn(4, 2, INPUTS)
    for x_t in x:
        assert torch.equal(net(x_t), twin(x_t))
        assert torch.equal(model.mem, twin.mem)
    net.reset()
    assert not model.mem.any(), "a reset leaves what was there before the first step"
    fresh = OwnState()
    fresh.load_state_dict(model.state_dict())
    for x_t in x:
        assert torch.equal(net(x_t), fresh(x_t))


# The same tensors on both sides.


def pair() -> tuple[Homeostatic, nn.Module]:
    model = Homeostatic()
    return model, tracecompile.convert(model, torch.randn(6, 2, INPUTS), backend="eager")


def test_the_buffers_are_the_very_tensors_of_the_model() -> None:
    model, net = pair()
    assert [id(value) for value in net.buffers()] == [id(value) for value in model.buffers()]
    net(2 * torch.randn(6, 2, INPUTS))
    assert [id(value) for value in net.buffers()] == [id(value) for value in model.buffers()]


def test_what_the_model_moves_is_moved_for_the_net() -> None:
    model, net = pair()
    twin = copy.deepcopy(model)
    first, second = 2 * torch.randn(6, 2, INPUTS), 2 * torch.randn(7, 3, INPUTS)
    model(first)  # assigns the buffer anew
    twin(first)
    assert torch.equal(net(second), twin(second))
    model.train()(first)
    twin(first)
    assert torch.equal(net(second), twin(second))


@pytest.mark.parametrize("loaded_by", ["model", "net"])
def test_a_state_dict_that_one_loads_is_seen_by_the_other(loaded_by: str) -> None:
    model, net = pair()
    other = Homeostatic()
    other.rate.fill_(0.75)
    (model if loaded_by == "model" else net).load_state_dict(other.state_dict())
    x = 2 * torch.randn(6, 2, INPUTS)
    assert torch.equal(net(x), other(x))
    assert torch.equal(model.rate, other.rate)
    assert model.state_dict().keys() == net.state_dict().keys()


@pytest.mark.parametrize("moved", ["model", "net"])
def test_another_precision_of_one_is_that_of_the_other(moved: str) -> None:
    model, net = pair()
    (model if moved == "model" else net).double()
    twin = copy.deepcopy(model)
    x = 2 * torch.randn(6, 2, INPUTS, dtype=torch.float64)
    assert torch.equal(net(x), twin(x))
    assert model.rate.dtype == torch.float64
    assert torch.equal(model.rate, twin.rate)


def test_a_copy_of_the_net_has_buffers_of_its_own() -> None:
    model, net = pair()
    before = model.rate.clone()
    other = copy.deepcopy(net)
    other(2 * torch.randn(6, 2, INPUTS))
    assert torch.equal(model.rate, before)
    assert not torch.equal(other.rate, before)


def test_a_net_that_was_saved_keeps_what_it_has_moved(tmp_path: Any) -> None:
    model, net = pair()
    net(2 * torch.randn(6, 2, INPUTS))
    tracecompile.save(net, tmp_path / "saved")
    loaded = tracecompile.load(tmp_path / "saved")
    x = 2 * torch.randn(7, 3, INPUTS)
    assert torch.equal(loaded(x), net(x))
    assert torch.equal(loaded.rate, model.rate)


def test_a_model_is_pickled_without_its_net() -> None:
    model, net = pair()
    net(2 * torch.randn(6, 2, INPUTS))
    assert torch.equal(pickle.loads(pickle.dumps(model)).rate, model.rate)


class Recurrent(Net):
    """Read at single time steps, for which backward runs the sequence once more."""

    def __init__(self) -> None:
        super().__init__()
        self.norm = nn.BatchNorm1d(HIDDEN)

    def forward(self, x: Tensor) -> Tensor:
        v, outs = x.new_zeros(x.shape[1], HIDDEN), []
        for x_t in x:
            v = 0.7 * v + self.norm(self.inp(x_t))
            z = spike(v - 0.5 - self.rate)
            v = v * (1 - z)
            with torch.no_grad():
                self.rate.lerp_(z.mean(0), 0.1)
            outs.append(self.out(z))
        return torch.stack(outs)


def test_the_second_pass_moves_nothing() -> None:
    model = Recurrent()
    net = tracecompile.convert(model, torch.randn(6, 2, INPUTS), backend="eager")
    outputs = net(2 * torch.randn(12, 4, INPUTS))
    before = {name: value.clone() for name, value in model.state_dict().items()}
    outputs.amax(0).sum().backward()
    assert model.inp.weight.grad is not None
    assert all(torch.equal(value, before[name]) for name, value in model.state_dict().items())
