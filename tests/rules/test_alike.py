"""Currents that act alike are carried once: a recurrent layer costs what a feed-forward one does."""

from __future__ import annotations

import pytest
import torch
from torch import Tensor, nn

import tracecompile
from tracecompile import nn as snn
from tracecompile.graphs.glue import accruals_of
from tracecompile.layers import Accrual, Layer

STEPS, BATCH, INPUTS, NEURONS = 8, 3, 4, 6


class Net(nn.Module):
    """Inputs, neurons, and a readout of every step."""

    def __init__(self, neurons: nn.Module) -> None:
        super().__init__()
        self.below, self.neurons, self.readout = nn.Linear(INPUTS, NEURONS), neurons, nn.Linear(NEURONS, 2)

    def forward(self, x: Tensor) -> Tensor:
        state, outputs = None, []
        for x_t in x:
            spikes, state = self.neurons(self.below(x_t), state)
            outputs.append(self.readout(spikes))
        return torch.stack(outputs)


class Leaking(snn.RLIF):
    """A recurrent layer in which what the neurons say to each other leaks at once: its currents do not act alike."""

    def forward(self, current: Tensor, state: snn.RLIFState | None = None) -> tuple[Tensor, snn.RLIFState]:  # type: ignore[override]
        if state is None:
            state = snn.RLIFState(torch.zeros_like(current), torch.zeros_like(current))
        charged = self.leak * (state.membrane + self.lateral(state.spikes)) + current
        spikes, membrane = self.fire(charged)
        return spikes, snn.RLIFState(membrane, spikes)


def made(kind: type[snn.LIF]) -> tuple[Net, Tensor]:
    torch.manual_seed(2)
    neurons = kind(NEURONS, learn_leak=True, detach_reset=False, surrogate=snn.sigmoid(4.0))
    return Net(neurons).double(), 2 * torch.randn(STEPS, BATCH, INPUTS).double()


def spiking(net: tracecompile.TracedModule) -> Layer:
    (layer,) = [each for each in net.program.layers if each.kind == "spiking"]
    return layer


def carried(net: tracecompile.TracedModule) -> list[tuple[str, str]]:
    """Returns role and state or output of what the spiking layer carries."""

    def about(accrual: Accrual) -> str:
        return accrual.pair[1] if accrual.role == "tangent" else accrual.pair[0]

    return [(accrual.role, about(accrual)) for accrual in accruals_of(spiking(net))]


def test_two_currents_of_a_recurrent_layer_are_carried_as_one() -> None:
    recurrent, forward = (tracecompile.convert(*made(kind), bins=STEPS) for kind in (snn.RLIF, snn.LIF))
    layer = spiking(recurrent)
    assert (len(layer.currents), len(spiking(forward).currents)) == (2, 1)
    assert len(carried(recurrent)) == len(carried(forward)) == 6  # of the current, the leak, and the state, two each
    first, second = layer.currents
    mentioned = {name for accrual in accruals_of(layer) for name in accrual.pair}
    assert first in mentioned
    assert second not in mentioned


def test_currents_that_do_not_act_alike_are_carried_each() -> None:
    net = tracecompile.convert(*made(Leaking), bins=STEPS)
    layer = spiking(net)
    scaled = {name for accrual in accruals_of(layer) for name in accrual.pair}
    assert set(layer.currents) <= scaled
    assert len(carried(net)) == 2 * (len(layer.currents) + 2)


@pytest.mark.parametrize("kind", [snn.RLIF, Leaking])
def test_with_a_bin_for_each_step_the_gradients_are_those_of_backpropagation_through_time(kind: type[snn.RLIF]) -> None:
    model, x = made(kind)
    net = tracecompile.convert(model, x, bins=STEPS)
    weigh = torch.randn(STEPS, BATCH, 2).double()
    names = dict(model.named_parameters())
    wanted = torch.autograd.grad((model(x) * weigh).sum(), list(names.values()))
    found = torch.autograd.grad((net(x) * weigh).sum(), list(net.parameters()))
    assert {"neurons.lateral.weight", "below.weight"} <= names.keys()
    for name, one, other in zip(names, found, wanted, strict=True):
        assert (one - other).norm() <= 1e-9 * other.norm(), name
        assert other.norm() > 0, name
