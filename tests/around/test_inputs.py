"""Gradients of what comes in: an encoder in front of a net is trained as it is in front of the model."""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

import pytest
import torch
from torch import Tensor, nn

import tracecompile
from around.nets import INPUTS, OUTPUTS, SPIKE, WIDTH, Step, assert_close, events, gradients, twins

STEPS = 8


class Shown(nn.Module):
    """One image, shown at every step; an offset is added to the current, and another argument is the threshold."""

    def __init__(self) -> None:
        super().__init__()
        self.enter, self.leave = nn.Linear(INPUTS, WIDTH), nn.Linear(WIDTH, OUTPUTS)

    def forward(self, image: Tensor, offset: Tensor, threshold: Tensor) -> Tensor:
        v, total = image.new_zeros(image.shape[0], WIDTH), image.new_zeros(image.shape[0], OUTPUTS)
        for _ in range(STEPS):
            v = 0.9 * v + 2 * self.enter(image) + offset
            z = SPIKE(v - threshold)
            v = v - threshold * z
            total = total + self.leave(z)
        return total


class Gated(nn.Module):
    """A sequence, and a gain that multiplies every current."""

    def __init__(self) -> None:
        super().__init__()
        self.enter, self.leave = nn.Linear(INPUTS, WIDTH), nn.Linear(WIDTH, OUTPUTS)

    def forward(self, x: Tensor, gain: Tensor) -> Tensor:
        v, total = x.new_zeros(x.shape[1], WIDTH), x.new_zeros(x.shape[1], OUTPUTS)
        for x_t in x:
            v = 0.9 * v + gain * self.enter(x_t)
            z = SPIKE(v - 0.5)
            v = v - 0.5 * z
            total = total + self.leave(z) * gain.mean()
        return total


def arguments_of(make: Callable[[], nn.Module], batch: int) -> list[Tensor]:
    if make is Shown:
        return [torch.rand(batch, INPUTS), torch.full((batch, WIDTH), 0.1), torch.full((WIDTH,), 0.5)]
    return [events(STEPS, batch), torch.full((batch, WIDTH), 2.0)]


@pytest.mark.parametrize("frozen", [False, True], ids=["trained", "frozen"])
@pytest.mark.parametrize("make", [Shown, Gated])
def test_arguments_of_all_steps_have_gradients(make: Callable[[], nn.Module], frozen: bool) -> None:
    model, twin = twins(make)
    for module in (model, twin):
        module.requires_grad_(not frozen)
    example = arguments_of(make, 2)
    net = tracecompile.convert(model, tuple(example), bins=STEPS, backend="eager")
    values, found = arguments_of(make, 4), []
    for module in (net, twin):
        given = [value.clone().requires_grad_() for value in values]
        module(*given).square().mean().backward()
        found.append({str(place): value.grad for place, value in enumerate(given) if value.grad is not None})
    assert len(found[1]) == len(values)
    assert_close(*found)
    if not frozen:
        assert_close(gradients(model), gradients(twin))


def test_one_argument_may_want_a_gradient_and_another_not() -> None:
    model, twin = twins(Gated)
    net = tracecompile.convert(model, tuple(arguments_of(Gated, 2)), bins=STEPS, backend="eager")
    x, gain = arguments_of(Gated, 4)
    for wanted in (0, 1):
        found = []
        for module in (net, twin):
            given = [x.clone(), gain.clone()]
            given[wanted].requires_grad_()
            module(*given).square().mean().backward()
            assert given[1 - wanted].grad is None
            assert given[wanted].grad is not None
            found.append({"it": given[wanted].grad})
        assert_close(*found)


def steps(module: nn.Module, encoder: nn.Module, x: Tensor) -> Tensor:
    total = torch.zeros(x.shape[1], OUTPUTS)
    for x_t in x:
        total = total + module(encoder(x_t))
    return total


def encoded(drive: Callable[[nn.Module, Tensor], Tensor]) -> None:
    """Trains an encoder in front of a net, and in front of its model; compares all gradients."""
    model, twin = twins(Step)
    net = tracecompile.convert(model, events(1, 2)[0], bins=STEPS, backend="eager")
    x, found = events(STEPS, 4), []
    for module in (net, twin):
        torch.manual_seed(1)
        encoder = nn.Linear(INPUTS, INPUTS)
        drive(lambda module=module, encoder=encoder: (module, encoder), x)  # type: ignore[arg-type]
        found.append(gradients(encoder))
    assert_close(*found)
    assert_close(gradients(model), gradients(twin))


def test_an_encoder_before_a_model_of_one_step() -> None:
    encoded(lambda made, x: steps(*made(), x).square().mean().backward())  # type: ignore[operator, func-returns-value]


def test_an_encoder_whose_values_are_in_the_loss_too() -> None:
    def drive(made: Any, x: Tensor) -> Any:
        module, encoder = made()
        given = [encoder(x_t) for x_t in x]
        total = torch.zeros(x.shape[1], OUTPUTS)
        for x_t in given:
            total = total + module(x_t)
        (total.square().mean() + 0.1 * torch.stack(given).square().mean()).backward()

    encoded(drive)


def test_an_encoder_before_a_stream() -> None:
    class Stacked(nn.Module):
        def __init__(self) -> None:
            super().__init__()
            self.enter = nn.Linear(INPUTS, WIDTH)

        def forward(self, x: Tensor) -> Tensor:
            v, spikes = x.new_zeros(x.shape[1], WIDTH), []
            for x_t in x:
                v = 0.9 * v + 2.5 * self.enter(x_t)
                z = SPIKE(v - 0.5)
                v = v - 0.5 * z
                spikes.append(z)
            return torch.stack(spikes)

    model, twin = twins(Stacked)
    net = tracecompile.convert(model, events(5, 2), bins=STEPS, backend="eager")
    x, found = events(STEPS, 4), []
    weights = torch.randn(STEPS, 4, WIDTH)
    for module in (net, twin):
        torch.manual_seed(1)
        encoder = nn.Linear(INPUTS, INPUTS)
        made = [encoder(x_t) for x_t in x]
        result = torch.stack(list(net.stream(made))) if module is net else module(torch.stack(made))
        (result * weights).sum().backward()
        found.append(gradients(encoder))
    assert_close(*found)
    assert_close(gradients(model), gradients(twin))


def test_a_gradient_that_autograd_cannot_hand_out_is_refused() -> None:
    """``torch.autograd.grad`` of the parameters alone would leave the encoder's gradient in its ``.grad``."""
    model, _ = twins(Step)
    net = tracecompile.convert(model, events(1, 2)[0], bins=STEPS, backend="eager")
    encoder = nn.Linear(INPUTS, INPUTS)
    loss = steps(net, encoder, events(STEPS, 4)).square().mean()
    with pytest.raises(RuntimeError, match=r"inputs of the steps require gradients"):
        torch.autograd.grad(loss, [model.enter.weight])
    assert encoder.weight.grad is None


def test_a_net_without_parameters_that_learn_still_trains_an_encoder() -> None:
    model, twin = twins(Step)
    for module in (model, twin):
        module.requires_grad_(False)
    net = tracecompile.convert(model, events(1, 2)[0], bins=STEPS, backend="eager")
    x, found = events(STEPS, 4), []
    for module in (net, twin):
        torch.manual_seed(1)
        encoder = nn.Linear(INPUTS, INPUTS)
        steps(module, encoder, x).square().mean().backward()
        found.append(gradients(encoder))
    assert_close(*found)
