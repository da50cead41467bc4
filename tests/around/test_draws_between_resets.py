"""Neurons of a library that are reset outside of the model, with random numbers drawn in its loop over time."""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

import pytest
import torch
from requirements import library
from torch import Tensor, nn

import tracecompile
from around.nets import INPUTS, OUTPUTS, WIDTH, assert_close, gradients, twins
from tracecompile.errors import UnsupportedState

pytestmark = pytest.mark.libraries


class Loop(nn.Module):
    """A loop over time around layers that keep their states, which whoever calls it resets."""

    def __init__(self, *layers: nn.Module) -> None:
        super().__init__()
        self.layers = nn.Sequential(*layers)

    def forward(self, x: Tensor) -> Tensor:
        rate = x.new_zeros(x.shape[1], OUTPUTS)
        for x_t in x:
            rate = rate + self.layers(self.encoded(x_t))
        return rate / x.shape[0]

    def encoded(self, x_t: Tensor) -> Tensor:
        return x_t


class Encoding(Loop):
    def encoded(self, x_t: Tensor) -> Tensor:
        return torch.bernoulli(x_t)


def node() -> nn.Module:
    made: nn.Module = library("spikingjelly.activation_based.neuron").LIFNode(v_threshold=0.3)
    return made


def leaky() -> nn.Module:
    made: nn.Module = library("snntorch").Leaky(beta=0.9, threshold=0.3, init_hidden=True)
    return made


def dropped_spikes() -> nn.Module:
    return Loop(nn.Linear(INPUTS, WIDTH), node(), nn.Dropout(0.3), nn.Linear(WIDTH, OUTPUTS))


def encoded_inputs() -> nn.Module:
    return Encoding(nn.Linear(INPUTS, WIDTH), node(), nn.Linear(WIDTH, OUTPUTS))


def dropped_by_another_library() -> nn.Module:
    return Encoding(nn.Linear(INPUTS, WIDTH), leaky(), nn.Dropout(0.3), nn.Linear(WIDTH, OUTPUTS))


def reset_spikingjelly(module: Any) -> None:
    library("spikingjelly.activation_based.functional").reset_net(module)


def reset_snntorch(module: Any) -> None:
    library("snntorch.utils").reset(module)
    for layer in module.layers:
        if hasattr(layer, "detach_hidden"):
            layer.detach_hidden()  # what it has kept of its reset still has a graph


CASES = (
    (dropped_spikes, reset_spikingjelly),
    (encoded_inputs, reset_spikingjelly),
    (dropped_by_another_library, reset_snntorch),
)


@pytest.mark.parametrize(("make", "reset"), CASES)
def test_sequences_go_on_and_draw_what_the_model_draws(
    make: Callable[[], nn.Module], reset: Callable[[Any], None]
) -> None:
    model, twin = twins(make)
    net = tracecompile.convert(model, torch.rand(6, 2, INPUTS), bins=12, backend="eager")
    for begins in (True, False, True):
        if begins:
            reset(net)
            reset(twin)
        x, found = torch.rand(9, 3, INPUTS), []
        for module in (net, twin):
            torch.manual_seed(1)
            module.zero_grad()
            found.append(module(x))
            if begins:  # the library hands its graph on to the next sequence, a net does not
                found[-1].square().mean().backward()
        assert torch.equal(*found)
        if begins:
            assert_close(gradients(model), gradients(twin))


def test_a_mask_that_a_layer_keeps_is_named() -> None:
    layer = library("spikingjelly.activation_based.layer")
    model = Loop(nn.Linear(INPUTS, WIDTH), node(), layer.Dropout(0.3), nn.Linear(WIDTH, OUTPUTS))
    with pytest.raises(UnsupportedState, match=r"layers\.2\.mask is left over"):
        tracecompile.convert(model, torch.rand(6, 2, INPUTS))
