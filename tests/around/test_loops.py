"""Training loops as people and libraries write them, with the net in the place of the model: the same losses."""

from __future__ import annotations

import contextlib
import io
from collections.abc import Callable, Iterator
from typing import Any

import pytest
import torch
from requirements import library
from torch import Tensor, nn
from torch.nn import functional as F

import tracecompile
from around.nets import INPUTS, OUTPUTS, Sequence, events, twins

STEPS, EPOCHS = 8, 4


class Normed(Sequence):
    """With normalisation, which training and evaluation do otherwise."""

    def __init__(self) -> None:
        super().__init__()
        self.norm = nn.BatchNorm1d(INPUTS)

    def forward(self, x: Tensor) -> Tensor:
        return super().forward(torch.stack([self.norm(x_t) for x_t in x]))


def batches(count: int = 3) -> list[tuple[Tensor, Tensor]]:
    torch.manual_seed(5)
    return [(events(STEPS, 6 - k), torch.randint(OUTPUTS, (6 - k,))) for k in range(count)]


def assert_same_losses(found: list[float], wanted: list[float]) -> None:
    assert len(found) == len(wanted)
    assert found == pytest.approx(wanted, rel=1e-4)
    assert wanted[-1] < wanted[0], "nothing is learned"


def fit(module: nn.Module, whole: nn.Module) -> list[float]:
    """As Lightning's Trainer: a sanity check, epochs with validation, a checkpoint that training goes on from."""
    optimizer = torch.optim.Adam(whole.parameters(), lr=0.02)
    losses: list[float] = []

    def validate() -> None:
        whole.eval()
        with torch.no_grad():
            losses.extend(F.cross_entropy(module(x), y).item() for x, y in batches(2))
        whole.train()

    def epoch() -> None:
        for x, y in batches():
            optimizer.zero_grad(set_to_none=True)
            loss = F.cross_entropy(module(x), y)
            loss.backward()
            torch.nn.utils.clip_grad_norm_(whole.parameters(), 1.0)
            optimizer.step()
            losses.append(loss.item())
        validate()

    validate()
    for _ in range(EPOCHS):
        epoch()
    file = io.BytesIO()
    torch.save({"model": whole.state_dict(), "optimizer": optimizer.state_dict()}, file)
    epoch()
    file.seek(0)
    kept = torch.load(file, weights_only=True)
    whole.load_state_dict(kept["model"])
    optimizer.load_state_dict(kept["optimizer"])
    epoch()
    return losses


@pytest.mark.parametrize("make", [Sequence, Normed])
@pytest.mark.parametrize("example", [True, False], ids=["example", "first call"])
def test_a_trainer_with_validation_and_checkpoints(make: Callable[[], nn.Module], example: bool) -> None:
    model, twin = twins(make)
    net = tracecompile.convert(model, *([events(5, 2)] if example else []), bins=STEPS, backend="eager")
    whole, wanted = nn.ModuleDict({"net": net}), nn.ModuleDict({"net": twin})
    assert_same_losses(fit(net, whole), fit(twin, wanted))
    assert all(torch.allclose(p, q, atol=1e-4) for p, q in zip(model.parameters(), twin.parameters(), strict=True))


def test_accumulated_gradients_and_a_wrapped_forward() -> None:
    """As Accelerate prepares a model: forward is wrapped, gradients add up over several batches."""
    model, twin = twins(Sequence)
    net, found = tracecompile.convert(model, events(5, 2), bins=STEPS, backend="eager"), []
    for module in (net, twin):
        own, optimizer, losses = module.forward, torch.optim.SGD(module.parameters(), lr=0.05), []

        def wrapped(*args: Any, own: Any = own) -> Any:
            with torch.autocast("cpu", enabled=False):
                return own(*args)

        module.forward = wrapped
        for _ in range(EPOCHS):
            for x, y in batches():
                loss = F.cross_entropy(module(x), y) / 3
                loss.backward()
                losses.append(loss.item())
            optimizer.step()
            optimizer.zero_grad()
        found.append(losses)
    assert_same_losses(*found)


def test_an_average_of_the_weights_is_evaluated() -> None:
    model, twin = twins(Sequence)
    net = tracecompile.convert(model, events(5, 2), bins=STEPS, backend="eager")
    averages = [torch.optim.swa_utils.AveragedModel(module) for module in (net, twin)]
    for module, average in zip((net, twin), averages, strict=True):
        optimizer = torch.optim.SGD(module.parameters(), lr=0.5)
        for x, y in batches():
            optimizer.zero_grad()
            F.cross_entropy(module(x), y).backward()
            optimizer.step()
            average.update_parameters(module)
    x = events(STEPS, 4)
    assert torch.allclose(averages[0](x), averages[1](x), atol=1e-4)
    assert not torch.equal(averages[0](x), net(x))


def test_an_annealed_slope() -> None:
    """A number that forward reads is changed before every epoch."""
    model, twin = twins(Sequence)
    net, found = tracecompile.convert(model, events(5, 2), bins=STEPS, backend="eager"), []
    for module, owner in ((net, model), (twin, twin)):
        optimizer, losses = torch.optim.Adam(module.parameters(), lr=0.02), []
        for epoch in range(EPOCHS):
            owner.threshold = 0.5 - 0.05 * epoch
            for x, y in batches():
                optimizer.zero_grad()
                loss = F.cross_entropy(module(x), y)
                loss.backward()
                optimizer.step()
                losses.append(loss.item())
        found.append(losses)
    assert_same_losses(*found)


def snntorch_loop(module: nn.Module, owner: nn.Module) -> Iterator[float]:
    """The loop of snnTorch's tutorials: reset, T calls, a loss on the membrane of every step."""
    utils = library("snntorch.utils")
    optimizer = torch.optim.Adam(module.parameters(), lr=0.02, betas=(0.9, 0.999))
    for _ in range(EPOCHS):
        for x, y in batches():
            module.train()
            utils.reset(module)
            recorded = torch.stack([module(x_t)[1] for x_t in x])
            loss = torch.zeros(())
            for step in range(STEPS):
                loss = loss + F.cross_entropy(recorded[step], y) / STEPS
            optimizer.zero_grad()
            loss.backward()
            optimizer.step()
            yield loss.item()


def spikingjelly_loop(module: nn.Module, owner: nn.Module) -> Iterator[float]:
    """The loop of SpikingJelly's tutorials: the mean of T calls, then reset_net."""
    functional = library("spikingjelly.activation_based.functional")
    optimizer = torch.optim.Adam(module.parameters(), lr=0.05)
    for _ in range(EPOCHS):
        for x, y in batches():
            rate = torch.zeros(len(y), OUTPUTS)
            for x_t in x:
                rate = rate + module(x_t)
            loss = F.mse_loss(rate / STEPS, F.one_hot(y, OUTPUTS).float())
            optimizer.zero_grad()
            loss.backward()
            optimizer.step()
            functional.reset_net(module)
            yield loss.item()


def snntorch_net() -> nn.Module:
    snntorch = library("snntorch")
    return nn.Sequential(
        nn.Linear(INPUTS, 8),
        snntorch.Leaky(beta=0.9, threshold=0.4, init_hidden=True),
        nn.Linear(8, OUTPUTS),
        snntorch.Leaky(beta=0.9, init_hidden=True, output=True),
    )


def spikingjelly_net() -> nn.Module:
    neuron = library("spikingjelly.activation_based.neuron")
    return nn.Sequential(
        nn.Linear(INPUTS, 8), neuron.LIFNode(v_threshold=0.2), nn.Linear(8, OUTPUTS), neuron.LIFNode(v_threshold=0.1)
    )


@pytest.mark.libraries
@pytest.mark.parametrize(
    ("make", "loop"),
    [
        pytest.param(snntorch_net, snntorch_loop, id="snntorch"),
        pytest.param(spikingjelly_net, spikingjelly_loop, id="spikingjelly"),
    ],
)
def test_the_loops_of_the_tutorials(make: Callable[[], nn.Module], loop: Callable[..., Iterator[float]]) -> None:
    model, twin = twins(make)
    net = tracecompile.convert(model, bins=STEPS, backend="eager")
    with contextlib.redirect_stdout(io.StringIO()):
        found, wanted = list(loop(net, model)), list(loop(twin, twin))
    assert_same_losses(found, wanted)
