"""Whole sequences under the exact rule: the gradient is that of the model, whatever the loss reads."""

from __future__ import annotations

import copy
from collections.abc import Callable
from typing import Any

import pytest
import torch
from torch import Tensor, nn

import tracecompile
from runtime.nets import HIDDEN, INPUTS, OUTPUTS, Fire, Whole
from tracecompile.runtime.module import session_of

RTOL = 1e-10


class Norms(nn.Module):
    """A layer with a norm in training and dropout per step, and a learnable initial state."""

    def __init__(self) -> None:
        super().__init__()
        self.below, self.above = nn.Linear(INPUTS, HIDDEN), nn.Linear(HIDDEN, OUTPUTS)
        self.norm, self.drop = nn.BatchNorm1d(HIDDEN), nn.Dropout(0.3)
        self.start = nn.Parameter(0.3 * torch.randn(HIDDEN))

    def forward(self, x: Tensor) -> Tensor:
        v, total = self.start.expand(x.shape[1], HIDDEN), x.new_zeros(x.shape[1], OUTPUTS)
        for x_t in x:
            v = 0.9 * v + self.norm(self.below(self.drop(x_t)))
            z = Fire.apply(v - 0.5)
            v = v - 0.5 * z
            total = total + self.above(z)
        return total / x.shape[0]


class Many(nn.Module):
    """What is collected of it in every way: all steps, some of them, the last one, and the last state."""

    def __init__(self) -> None:
        super().__init__()
        self.below, self.above = nn.Linear(INPUTS, HIDDEN), nn.Linear(HIDDEN, OUTPUTS)
        self.leak = nn.Parameter(torch.rand(HIDDEN))

    def forward(self, x: Tensor, gain: Tensor) -> tuple[Tensor, ...]:
        v, late = x.new_zeros(x.shape[1], HIDDEN), x.new_zeros(x.shape[1], OUTPUTS)
        spikes, y = [], late
        for t in range(x.shape[0]):
            v = self.leak.sigmoid() * v + gain * self.below(x[t])
            z = Fire.apply(v - 0.5)
            v = v - 0.5 * z.detach()
            y = self.above(z)
            spikes.append(z)
            if t >= 3:
                late = late + y
        return torch.stack(spikes), late, y, v


def both(make: Callable[[], nn.Module], example: Any, **options: Any) -> tuple[Any, nn.Module, nn.Module]:
    model = make().double()
    twin = copy.deepcopy(model)
    return tracecompile.convert(model, example, rule="exact", **options), model, twin


def assert_same_gradients(model: nn.Module, twin: nn.Module) -> None:
    named = dict(twin.named_parameters())
    for name, parameter in model.named_parameters():
        if not parameter.requires_grad:
            continue
        expected = named[name].grad
        assert expected is not None
        assert expected.any(), f"{name}: the comparison proves nothing"
        assert parameter.grad is not None, name
        torch.testing.assert_close(parameter.grad, expected, rtol=RTOL, atol=RTOL * float(expected.norm()), msg=name)


def inputs(steps: int, batch: int, **options: Any) -> Tensor:
    return torch.randn(steps, batch, INPUTS, dtype=torch.float64, **options)


@pytest.mark.parametrize("snapshots", [1, 2, 3, 32, None])
@pytest.mark.parametrize("chunk", [1, 3, None])
def test_a_loss_on_every_step(snapshots: int | None, chunk: int | None) -> None:
    net, model, twin = both(Whole, inputs(4, 2), snapshots=snapshots, chunk=chunk, backend="eager")
    x = inputs(23, 3)
    found, expected = net(x), twin(x)
    if chunk != 3:
        assert torch.equal(found, expected)
    for result in (found, expected):
        (result * torch.arange(23.0).cos()[:, None, None]).square().sum().backward()
    assert_same_gradients(model, twin)


@pytest.mark.parametrize("loss", [lambda y: y[7].sum(), lambda y: y.amax(0).sum(), lambda y: y[-1].square().sum()])
def test_a_loss_on_single_steps(loss: Callable[[Tensor], Tensor]) -> None:
    net, model, twin = both(Whole, inputs(4, 2), snapshots=2, chunk=2)
    x = inputs(15, 3)
    loss(net(x)).backward()
    loss(twin(x)).backward()
    assert_same_gradients(model, twin)


@pytest.mark.parametrize("chunk", [1, 4])
@pytest.mark.parametrize("which", [(0,), (1,), (2,), (3,), (0, 1, 2, 3)])
def test_whatever_is_collected(which: tuple[int, ...], chunk: int) -> None:
    gain = torch.tensor(2.0, dtype=torch.float64)
    net, model, twin = both(Many, (inputs(4, 2), gain), snapshots=3, chunk=chunk, backend="eager")
    gradients = []
    for module in (net, twin):
        torch.manual_seed(3)
        x, own_gain = inputs(14, 3, requires_grad=True), gain.clone().requires_grad_()
        results = module(x, own_gain)
        sum(results[index].square().sum() for index in which).backward()
        gradients.append((x.grad, own_gain.grad))
    for name, parameter in twin.named_parameters():
        other = model.get_parameter(name).grad
        assert (other is None) == (parameter.grad is None), name
        if parameter.grad is not None:
            torch.testing.assert_close(other, parameter.grad, rtol=1e-9, atol=1e-12)
    for one, other in zip(*gradients, strict=True):
        torch.testing.assert_close(one, other, rtol=1e-9, atol=1e-12)


@pytest.mark.parametrize("snapshots", [1, 3, 32])
def test_norms_in_training_dropout_and_learnt_starts(snapshots: int) -> None:
    net, model, twin = both(Norms, inputs(4, 3), snapshots=snapshots, chunk=2)
    for _ in range(2):
        x = inputs(11, 4)
        for module in (net, twin):
            torch.manual_seed(5)
            result = module(x)
            after = torch.get_rng_state()
            torch.manual_seed(99)
            result.square().sum().backward()
            module.last = (result.detach(), after)
        assert torch.equal(net.last[0], twin.last[0])
        assert torch.equal(net.last[1], twin.last[1]), "it has drawn as many numbers as the model"
        assert_same_gradients(model, twin)
        assert torch.equal(model.norm.running_mean, twin.norm.running_mean), "statistics move once"
        assert model.norm.num_batches_tracked == twin.norm.num_batches_tracked


def test_another_seed_is_another_gradient() -> None:
    net, model, _ = both(Norms, inputs(4, 3))
    x, found = inputs(11, 4), []
    for seed in (1, 2):
        torch.manual_seed(seed)
        model.zero_grad()
        net(x).square().sum().backward()
        found.append(model.below.weight.grad.clone())
    assert not torch.allclose(*found)


class BatchFirst(nn.Module):
    """Reads its steps along the second axis."""

    def __init__(self) -> None:
        super().__init__()
        self.below, self.above = nn.Linear(INPUTS, HIDDEN), nn.Linear(HIDDEN, OUTPUTS)

    def forward(self, x: Tensor) -> Tensor:
        v, total = x.new_zeros(x.shape[0], HIDDEN), x.new_zeros(x.shape[0], OUTPUTS)
        for t in range(x.shape[1]):
            v = 0.9 * v + self.below(x[:, t])
            z = Fire.apply(v - 0.5)
            v = v - 0.5 * z
            total = total + self.above(z)
        return total


@pytest.mark.parametrize("chunk", [None, 4])
@pytest.mark.parametrize("steps", [3, 21])
def test_time_is_any_axis_and_inputs_have_gradients(steps: int, chunk: int | None) -> None:
    model = BatchFirst().double()
    net = tracecompile.convert(
        copy.deepcopy(model), torch.rand(2, 5, INPUTS).double(), rule="exact", backend="eager", chunk=chunk
    )
    x = 2 * torch.rand(4, steps, INPUTS, dtype=torch.double)
    found = []
    for run in (net, model):
        given = x.clone().requires_grad_()
        run(given).square().sum().backward()
        assert given.grad is not None
        found.append([given.grad, *(parameter.grad for parameter in run.parameters())])
    for one, other in zip(*found, strict=True):
        assert other.any()
        torch.testing.assert_close(one, other, rtol=RTOL, atol=1e-12)


def test_backward_twice_through_one_graph() -> None:
    net, model, twin = both(Whole, inputs(4, 2), snapshots=2, chunk=2)
    x = inputs(13, 3)
    for module in (net, twin):
        result = module(x)
        result[3].sum().backward(retain_graph=True)
        result.square().sum().backward()
    assert_same_gradients(model, twin)
    result = net(x).sum()
    result.backward()
    with pytest.raises(RuntimeError, match="backward through the graph a second time"):
        result.backward()


def test_a_hook_on_a_parameter_sees_its_gradient_once() -> None:
    net, model, twin = both(Whole, inputs(4, 2), chunk=2)
    seen: list[Tensor] = []
    model.lateral.weight.register_hook(lambda g: seen.append(g) or g.clamp(-0.01, 0.01))
    twin.lateral.weight.register_hook(lambda g: g.clamp(-0.01, 0.01))
    x = inputs(9, 3)
    net(x).square().sum().backward()
    twin(x).square().sum().backward()
    assert len(seen) == 1
    assert_same_gradients(model, twin)


@pytest.mark.parametrize("frozen", ["below.weight", "lateral.weight", "above.bias"])
def test_a_frozen_parameter_gets_none(frozen: str) -> None:
    net, model, twin = both(Whole, inputs(4, 2), chunk=2)
    x = inputs(9, 3)
    for module in (model, twin):
        module.get_parameter(frozen).requires_grad_(False)
    net(x).square().sum().backward()
    twin(x).square().sum().backward()
    assert model.get_parameter(frozen).grad is None
    assert_same_gradients(model, twin)


def test_an_encoder_in_front_is_trained() -> None:
    net, model, twin = both(Whole, inputs(4, 2), chunk=2, snapshots=2)
    x, encoders = inputs(9, 3), [nn.Linear(INPUTS, INPUTS).double() for _ in range(2)]
    encoders[1].load_state_dict(encoders[0].state_dict())
    net(encoders[0](x)).square().sum().backward()
    twin(encoders[1](x)).square().sum().backward()
    assert_same_gradients(encoders[0], encoders[1])
    assert_same_gradients(model, twin)


def test_under_functional_call() -> None:
    net, model, twin = both(Whole, inputs(4, 2), chunk=2, snapshots=2)
    given = [{name: value.detach().clone().requires_grad_() for name, value in twin.named_parameters()} for _ in "ab"]
    x = inputs(9, 3)
    for module, own in zip((net, twin), given, strict=True):
        torch.func.functional_call(module, own, (x,)).square().sum().backward()
    for name, expected in given[1].items():
        torch.testing.assert_close(given[0][name].grad, expected.grad, rtol=1e-10, atol=1e-12)
    assert all(parameter.grad is None for parameter in model.parameters())


def test_what_is_changed_before_backward_is_refused() -> None:
    net, model, _ = both(Whole, inputs(4, 2))
    x = inputs(9, 3)
    loss = net(x).sum()
    x.add_(1)
    with pytest.raises(RuntimeError, match="input was modified in place"):
        loss.backward()
    loss = net(x).sum()
    with torch.no_grad():
        model.below.weight.mul_(0.5)
    with pytest.raises(RuntimeError, match="parameter was modified in place"):
        loss.backward()
    gradient = torch.autograd.grad(net(x).sum(), model.below.weight, create_graph=True)[0]
    with pytest.raises(tracecompile.ConversionError, match="no second derivative"):
        gradient.sum().backward()


def test_chunks_through_inductor() -> None:
    net, model, twin = both(Many, (inputs(4, 2), torch.tensor(2.0)), backend="inductor", chunk=4, snapshots=2)
    x, gain = inputs(21, 3, requires_grad=True), torch.tensor(2.0, dtype=torch.float64, requires_grad=True)
    found = []
    for module in (net, twin):
        x.grad = gain.grad = None
        sum(result.square().sum() for result in module(x, gain)).backward()
        found.append((x.grad, gain.grad))
    assert_same_gradients(model, twin)
    for one, other in zip(*found, strict=True):
        torch.testing.assert_close(one, other, rtol=1e-9, atol=1e-12)
    assert net.report.execution.backend == "inductor"
    assert not session_of(net).executor.compiled.obstacles


class Sloped(nn.Module):
    """The same step as another of these, with another slope."""

    def __init__(self, slopes: tuple[float, float]) -> None:
        super().__init__()
        self.first, self.second = nn.Linear(INPUTS, HIDDEN), nn.Linear(HIDDEN, HIDDEN)
        self.spikes = [tracecompile.nn.fast_sigmoid(slope) for slope in slopes]

    def forward(self, x: Tensor) -> Tensor:
        v = u = x.new_zeros(x.shape[1], HIDDEN)
        total = x.new_zeros(x.shape[1], HIDDEN)
        for x_t in x:
            v = 0.9 * v + 2 * self.first(x_t)
            z = self.spikes[0](v - 0.5)
            v = v - 0.5 * z
            u = 0.9 * u + 2 * self.second(z)
            y = self.spikes[1](u - 0.5)
            u = u - 0.5 * y
            total = total + y
        return total


def test_compiled_layers_that_differ_in_their_surrogate_alone() -> None:
    net, model, twin = both(lambda: Sloped((25.0, 3.0)), inputs(4, 2), backend="inductor", chunk=4)
    x = inputs(12, 3)
    net(x).square().sum().backward()
    twin(x).square().sum().backward()
    assert_same_gradients(model, twin)
