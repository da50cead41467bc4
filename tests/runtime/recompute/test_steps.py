"""Single steps under the exact rule: models of one step, and streams."""

from __future__ import annotations

import copy
from typing import Any

import pytest
import torch
from torch import Tensor, nn

import tracecompile
from runtime.nets import INPUTS, OUTPUTS, Step, Whole
from runtime.recompute.test_sequences import assert_same_gradients, inputs


def both(**options: Any) -> tuple[Any, nn.Module, nn.Module]:
    model = Step().double()
    twin = copy.deepcopy(model)
    return tracecompile.convert(model, inputs(1, 2)[0], rule="exact", **options), model, twin


@pytest.mark.parametrize(("snapshots", "chunk"), [(1, 1), (2, 2), (3, 1), (32, None), (None, 2)])
def test_a_loss_on_every_step(snapshots: int | None, chunk: int | None) -> None:
    net, model, twin = both(snapshots=snapshots, chunk=chunk)
    for module in (net, twin):
        module.reset()
        torch.manual_seed(1)
        outputs = [module(x) for x in inputs(13, 3)]
        sum(y.square().sum() * (t % 3) for t, y in enumerate(outputs)).backward()
    assert_same_gradients(model, twin)


def test_updates_while_the_states_go_on() -> None:
    net, model, twin = both(chunk=2)
    optimisers = [torch.optim.SGD(module.parameters(), 0.05) for module in (model, twin)]
    losses = []
    for module, optimiser in zip((net, twin), optimisers, strict=True):
        torch.manual_seed(1)
        module.reset()
        total, seen = torch.zeros(()), []
        for t, x in enumerate(inputs(15, 3)):
            total = total + module(x).square().sum()
            if t % 5 == 4:
                optimiser.zero_grad()
                total.backward()
                optimiser.step()
                seen.append(total.detach())
                total = torch.zeros(())
                if module is twin:
                    twin.v, twin.y = twin.v.detach(), twin.y.detach()
        losses.append(seen)
    torch.testing.assert_close(losses[0], losses[1], rtol=1e-10, atol=0.0)
    assert_same_gradients(model, twin)


def test_inputs_of_steps_have_their_gradients() -> None:
    net, model, twin = both(chunk=2, snapshots=1)
    encoders = [nn.Linear(INPUTS, INPUTS).double() for _ in range(2)]
    encoders[1].load_state_dict(encoders[0].state_dict())
    for module, encoder in zip((net, twin), encoders, strict=True):
        torch.manual_seed(1)
        module.reset()
        sum(module(encoder(x)).square().sum() for x in inputs(9, 3)).backward()
    assert_same_gradients(encoders[0], encoders[1])
    assert_same_gradients(model, twin)


def test_a_stream() -> None:
    model = Whole().double()
    twin = copy.deepcopy(model)
    net, x = tracecompile.convert(model, inputs(4, 2), rule="exact", chunk=3, snapshots=2), inputs(17, 3)
    outputs = list(net.stream(iter(x)))
    expected = twin(x)
    assert torch.equal(torch.stack(outputs), expected)
    torch.stack(outputs).square().sum().backward()
    expected.square().sum().backward()
    assert_same_gradients(model, twin)


def test_an_input_that_is_written_over_is_refused() -> None:
    net, _, _ = both()
    x = inputs(1, 3)[0]
    y = net(x)
    x.copy_(inputs(1, 3)[0])
    total = y.sum() + net(x).sum()
    with pytest.raises(RuntimeError, match="modified in place"):
        total.backward()


def test_nothing_is_kept_without_gradients() -> None:
    net, _, _ = both()
    with torch.no_grad():
        for x in inputs(5, 3):
            assert not net(x).requires_grad
    assert net.snapshot().keys() >= {"layout"}


def test_steps_run_again_under_the_autocast_that_they_ran_under() -> None:
    torch.manual_seed(0)
    models = [Step() for _ in range(2)]
    models[1].load_state_dict(models[0].state_dict())
    nets = [
        tracecompile.convert(model, torch.randn(2, INPUTS), rule=rule, **options)  # type: ignore[arg-type]
        for model, rule, options in zip(models, ("exact", "bptt"), ({"chunk": 2}, {}), strict=True)
    ]
    x = torch.randn(7, 3, INPUTS)
    for net in nets:
        net.reset()
        with torch.autocast("cpu", torch.bfloat16):
            outputs = [net(x_t) for x_t in x]
        sum(y.float().square().sum() for y in outputs).backward()
    for one, other in zip(models[0].parameters(), models[1].parameters(), strict=True):
        # Weights are cast once for all steps, and their gradients are added up in 16 bits.
        error = float((one.grad - other.grad).norm() / other.grad.norm())
        assert error < 0.006


class OfTheBatch(nn.Module):
    """Its state is that of the whole batch, of whatever size; or that of each sample, which starts anew with it."""

    def __init__(self, shared: bool) -> None:
        super().__init__()
        self.below, self.above = nn.Linear(INPUTS, 8, bias=False), nn.Linear(8, OUTPUTS)
        self.shared = shared
        self.v: Tensor | None = None

    def forward(self, x: Tensor) -> Tensor:
        current = self.below(x)
        if self.shared:
            current = current.mean(0)
        if self.v is None or self.v.shape != current.shape:
            self.v = torch.zeros_like(current)
        self.v = (0.9 * self.v + current).tanh()
        return self.above(self.v + x[:, :1])


def of_the_batch(shared: bool) -> tuple[Any, nn.Module, nn.Module]:
    torch.manual_seed(0)
    model = OfTheBatch(shared).double()
    twin = copy.deepcopy(model)
    return tracecompile.convert(model, inputs(1, 3)[0], rule="exact", chunk=2), model, twin


def test_states_that_start_anew_begin_other_steps() -> None:
    net, model, twin = of_the_batch(shared=False)
    silent, x = torch.zeros(3, 4, INPUTS, dtype=torch.float64), inputs(5, 3)
    for module in (net, twin):  # after steps without any input nothing is lost with the states
        sum(module(x_t).square().sum() for x_t in (*silent, *x)).backward()
    assert_same_gradients(model, twin)


def test_states_of_no_sample_meet_a_batch_of_another_size() -> None:
    net, model, twin = of_the_batch(shared=True)
    few, many = inputs(3, 3), inputs(5, 4)
    for module in (net, twin):
        sum(module(x).square().sum() for x in few).backward()
    twin.v = twin.v.detach()
    for module in (net, twin):
        sum(module(x).square().sum() for x in many).backward()
    assert_same_gradients(model, twin)
    with pytest.raises(tracecompile.ConversionError, match="still to be trained"):
        [net(x) for x in (*many, *few)]
    net.detach()
    net(few[0])


def test_under_functional_call() -> None:
    net, model, twin = both(chunk=2)
    given = [{name: value.detach().clone().requires_grad_() for name, value in twin.named_parameters()} for _ in "ab"]
    for module, own in zip((net, twin), given, strict=True):
        torch.manual_seed(1)
        module.reset()
        outputs = [torch.func.functional_call(module, own, (x,)) for x in inputs(5, 3)]
        sum(y.square().sum() for y in outputs).backward()
    for name, expected in given[1].items():
        torch.testing.assert_close(given[0][name].grad, expected.grad, rtol=1e-10, atol=1e-12)
    assert all(parameter.grad is None for parameter in model.parameters())


class Drawing(nn.Module):
    """One step with dropout, whose caller draws numbers of its own between the steps."""

    def __init__(self) -> None:
        super().__init__()
        self.below, self.above, self.drop = nn.Linear(INPUTS, 8), nn.Linear(8, OUTPUTS), nn.Dropout(0.4)

    def forward(self, x: Tensor, v: Tensor) -> tuple[Tensor, Tensor]:
        v = 0.9 * v + 2 * self.below(x)
        z = tracecompile.nn.fast_sigmoid(5.0)(v - 0.5)
        return self.above(self.drop(z)), v - 0.5 * z


def test_dropout_is_drawn_again_step_by_step() -> None:
    model = Drawing().double()
    twin = copy.deepcopy(model)
    start = torch.zeros(3, 8, dtype=torch.float64)
    net = tracecompile.convert(model, (inputs(1, 3)[0], start), rule="exact", chunk=2, snapshots=2)
    for module in (net, twin):
        torch.manual_seed(1)
        v, total = start, torch.zeros(())
        for t in range(7):
            y, v = module(inputs(1, 3)[0], v)
            torch.rand(t)
            total = total + y.square().sum()
        total.backward()
    assert_same_gradients(model, twin)
