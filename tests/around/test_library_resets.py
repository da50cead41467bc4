"""A library's own reset, called on the model or on the net, starts another sequence."""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

import pytest
import torch
from requirements import library
from torch import Tensor, nn

import tracecompile
from around.nets import INPUTS, WIDTH, assert_close, events, gradients, twins

pytestmark = pytest.mark.libraries


def snntorch_net() -> nn.Module:
    snntorch = library("snntorch")
    return nn.Sequential(nn.Linear(INPUTS, WIDTH), snntorch.Leaky(beta=0.9, threshold=0.3, init_hidden=True))


def spikingjelly_net() -> nn.Module:
    neuron = library("spikingjelly.activation_based.neuron")
    return nn.Sequential(nn.Linear(INPUTS, WIDTH), neuron.LIFNode(v_threshold=0.2))


def sinabs_net() -> nn.Module:
    layers = library("sinabs.layers")
    return nn.Sequential(nn.Linear(INPUTS, WIDTH), layers.LIF(tau_mem=10.0, spike_threshold=0.05))


def reset_snntorch(module: nn.Module) -> None:
    library("snntorch.utils").reset(module)


def reset_spikingjelly(module: nn.Module) -> None:
    library("spikingjelly.activation_based.functional").reset_net(module)


def reset_sinabs(module: nn.Module) -> None:
    library("sinabs").reset_states(module)


@pytest.mark.parametrize("on", ["model", "net"])
@pytest.mark.parametrize(
    ("make", "reset", "in_time"),
    [
        pytest.param(snntorch_net, reset_snntorch, False, id="snntorch"),
        pytest.param(spikingjelly_net, reset_spikingjelly, False, id="spikingjelly"),
        pytest.param(sinabs_net, reset_sinabs, True, id="sinabs"),
    ],
)
def test_the_librarys_reset_starts_another_sequence(
    make: Callable[[], nn.Module], reset: Callable[[Any], None], in_time: bool, on: str
) -> None:
    model, twin = twins(make)

    def pieces(steps: int) -> list[Tensor]:
        x = 2 * events(steps, 4)
        return [x_t.unsqueeze(1).repeat(1, 3, 1) if in_time else x_t for x_t in x]

    net = tracecompile.convert(model, pieces(1)[0], bins=12, backend="eager")
    for _ in range(2):
        reset(net if on == "net" else model)
        reset(twin)
        for module in (model, twin):
            module.zero_grad()
        loss, wanted, fired = torch.zeros(()), torch.zeros(()), 0.0
        for x_t in pieces(4):
            got, right = net(x_t), twin(x_t)
            assert torch.equal(got, right)
            fired += float(got.detach().sum())
            loss, wanted = loss + got.square().sum(), wanted + right.square().sum()
        assert fired
        if not in_time:
            loss.backward()
            wanted.backward()
            assert_close(gradients(model), gradients(twin))
