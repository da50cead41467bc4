"""Training and evaluation, with and without gradients, in any order."""

from __future__ import annotations

import pytest
import torch
from support.oracle import HIDDEN, INPUTS, OUTPUTS, Program, require_right, spike
from torch import Tensor, nn
from torch.nn import functional as F

import tracecompile


class Net(nn.Module):
    """Leaky neurons whose threshold is noisy in training: the code asks for the mode."""

    def __init__(self) -> None:
        super().__init__()
        self.inp, self.norm, self.out = nn.Linear(INPUTS, HIDDEN), nn.BatchNorm1d(HIDDEN), nn.Linear(HIDDEN, OUTPUTS)

    def forward(self, x: Tensor) -> Tensor:
        v, total = x.new_zeros(x.shape[1], HIDDEN), 0.0
        threshold = 0.5 if self.training else 0.6
        for x_t in x:
            v = 0.7 * v + self.norm(self.inp(x_t))
            z = spike(v - threshold)
            v = v * (1 - z)
            total = total + self.out(z)
        return total / x.shape[0]


class AsksBelow(Net):
    """A part of the model asks."""

    class Leak(nn.Module):
        def forward(self, v: Tensor) -> Tensor:
            return 0.7 * v if self.training else 0.8 * v

    def __init__(self) -> None:
        super().__init__()
        self.leak = self.Leak()

    def forward(self, x: Tensor) -> Tensor:
        v, total = x.new_zeros(x.shape[1], HIDDEN), 0.0
        for x_t in x:
            v = self.leak(v) + self.norm(self.inp(x_t))
            z = spike(v - 0.5)
            v = v * (1 - z)
            total = total + self.out(z)
        return total / x.shape[0]


class OneStep(nn.Module):
    """One step per call; the reset is soft in training and hard in evaluation."""

    def __init__(self) -> None:
        super().__init__()
        self.inp, self.out, self.mem = nn.Linear(INPUTS, HIDDEN), nn.Linear(HIDDEN, OUTPUTS), None

    def reset(self) -> None:
        self.mem = None

    def forward(self, x_t: Tensor) -> Tensor:
        mem = x_t.new_zeros(x_t.shape[0], HIDDEN) if self.mem is None else self.mem
        mem = 0.7 * mem + self.inp(x_t)
        z = spike(mem - 0.5)
        self.mem = mem - 0.5 * z if self.training else mem * (1 - z)
        output: Tensor = self.out(z)
        return output


class DropsInput(Net):
    """Dropout before the loop, by function and by module."""

    def __init__(self) -> None:
        super().__init__()
        self.drop = nn.Dropout(0.3)

    def forward(self, x: Tensor) -> Tensor:
        return super().forward(self.drop(F.dropout(x, 0.2, self.training)))


class MasksTheSequence(Net):
    """One mask of hidden units per sequence."""

    def forward(self, x: Tensor) -> Tensor:
        mask = F.dropout(torch.ones(x.shape[1], HIDDEN), 0.25, self.training)
        v, total = x.new_zeros(x.shape[1], HIDDEN), 0.0
        for x_t in x:
            v = 0.7 * v + self.norm(self.inp(x_t))
            z = spike(v - 0.5) * mask
            v = v - 0.5 * z
            total = total + self.out(z)
        return total / x.shape[0]


RUNS = ((3, 4), (11, 5), (23, 2))


@pytest.mark.parametrize("kind", [Net, AsksBelow, DropsInput, MasksTheSequence])
def test_both_modes_are_the_models(kind: type[nn.Module]) -> None:
    require_right(Program(kind, runs=RUNS, trained=False))


def test_both_modes_of_one_step() -> None:
    require_right(Program(OneStep, step=True))


def twins(kind: type[nn.Module]) -> tuple[nn.Module, nn.Module]:
    torch.manual_seed(4)
    model = kind()
    torch.manual_seed(4)
    return model, kind()


WITHOUT = {"no_grad": torch.no_grad, "inference_mode": torch.inference_mode}


@pytest.mark.parametrize("without", WITHOUT)
@pytest.mark.parametrize("training", [True, False])
@pytest.mark.parametrize("kind", [Net, OneStep])
def test_a_first_call_without_gradients(kind: type[nn.Module], training: bool, without: str) -> None:
    model, twin = twins(kind)
    net = tracecompile.convert(model, bins=5, backend="eager")
    net.train(training)
    twin.train(training)
    with WITHOUT[without]():
        drawn = 2 * torch.randn(5, 3, INPUTS)
        require_same_sequence(net, twin, drawn)
    net.train()
    twin.train()
    drawn = 2 * torch.randn(5, 4, INPUTS)
    (found, wanted) = require_same_sequence(net, twin, drawn)
    (found * found).sum().backward()
    (wanted * wanted).sum().backward()
    for parameter, other in zip(model.parameters(), twin.parameters(), strict=True):
        assert parameter.grad is not None
        assert torch.allclose(parameter.grad, other.grad, rtol=1e-4, atol=1e-5)


@pytest.mark.parametrize("without", WITHOUT)
@pytest.mark.parametrize("kind", [Net, OneStep])
def test_a_later_capture_without_gradients(kind: type[nn.Module], without: str) -> None:
    model, twin = twins(kind)
    example = torch.randn(6, 2, INPUTS)
    net = tracecompile.convert(model, example if kind is Net else example[0], backend="eager")
    for _ in range(2):
        for training in (False, True):
            net.train(training)
            twin.train(training)
            with WITHOUT[without]():
                require_same_sequence(net, twin, 2 * torch.randn(7, 3, INPUTS))
    net.double()
    twin.double()
    with WITHOUT[without]():
        require_same_sequence(net, twin, 2 * torch.randn(7, 3, INPUTS, dtype=torch.float64))


def require_same_sequence(net: nn.Module, twin: nn.Module, drawn: Tensor) -> tuple[Tensor, Tensor]:
    results = []
    for module in (net, twin):
        if isinstance(twin, OneStep):
            module.reset()
            results.append(torch.stack([module(each) for each in drawn]))
        else:
            results.append(module(drawn))
    assert torch.equal(*results)
    return results[0], results[1]


def test_modes_that_alternate_are_captured_once_each() -> None:
    net = tracecompile.convert(Net(), torch.randn(6, 2, INPUTS), backend="eager")
    programs = []
    for _ in range(3):
        for training in (True, False):
            net.train(training)
            net(torch.randn(6, 2, INPUTS))
            programs.append(id(net.program))
    assert len(set(programs)) == 2


def test_a_step_goes_on_in_the_other_mode_from_where_it_stands() -> None:
    model, twin = twins(OneStep)
    net = tracecompile.convert(model, torch.randn(2, INPUTS), backend="eager")
    for training in (True, False, True):
        net.train(training)
        twin.train(training)
        for x_t in 2 * torch.randn(3, 2, INPUTS):
            assert torch.equal(net(x_t), twin(x_t))


def test_the_net_and_the_model_are_in_one_mode() -> None:
    model = Net()
    model.norm.eval()
    net = tracecompile.convert(model, torch.randn(6, 2, INPUTS), backend="eager")
    assert net.training
    assert not model.norm.training, "conversion leaves the mode as it is"
    net.eval()
    assert not model.training
    model.train()
    assert net.training
    assert model.norm.training


def test_half_precision_by_autocast_in_both_modes() -> None:
    model, twin = twins(Net)
    net = tracecompile.convert(model, torch.randn(6, 2, INPUTS), backend="eager")
    for training in (True, False):
        net.train(training)
        twin.train(training)
        x = 2 * torch.randn(7, 3, INPUTS)
        with torch.autocast("cpu", dtype=torch.bfloat16), torch.set_grad_enabled(training):
            assert torch.equal(net(x), twin(x))
