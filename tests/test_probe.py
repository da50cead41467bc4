"""What probe says about networks that have something wrong with them."""

from __future__ import annotations

import json
from typing import Any

import pytest
import torch
from torch import Tensor, nn

import tracecompile
from tracecompile import nn as snn
from tracecompile.errors import InvalidInput
from tracecompile.runtime.layout import LAYOUT


class Net(nn.Module):
    """One lateral layer and a readout."""

    def __init__(self, bias: float = 0.0, lateral: float = 0.01) -> None:
        super().__init__()
        torch.manual_seed(0)
        self.below, self.readout = nn.Linear(6, 12), nn.Linear(12, 2)
        self.neurons = snn.RLIF(12, surrogate=snn.sigmoid(4.0), detach_reset=True)
        nn.init.constant_(self.below.bias, bias)
        nn.init.normal_(self.neurons.lateral.weight, 0.0, lateral)

    def forward(self, x: Tensor) -> Tensor:
        state, total = None, 0.0
        for t in range(x.shape[0]):
            spikes, state = self.neurons(self.below(x[t]), state)
            total = total + self.readout(spikes)
        return total


def probed(x: Tensor, asked: dict[str, Any] | None = None, **options: float) -> tracecompile.Probe:
    return tracecompile.probe(tracecompile.convert(Net(**options), x, **asked or {}), x)


@pytest.fixture
def x() -> Tensor:
    return torch.rand(40, 5, 6, generator=torch.Generator().manual_seed(1))


def test_a_healthy_network_has_no_advice() -> None:
    # long enough for the rates of the bins to be alike
    found = probed(torch.rand(400, 5, 6, generator=torch.Generator().manual_seed(1)), bias=0.3)
    layer = found.layers[0]
    assert 0.01 < layer.rate < 0.9
    assert found.advice == ()
    assert json.loads(json.dumps(found.to_dict()))["layers"][0]["name"] == layer.name
    assert layer.name in str(found)


def test_the_rate_is_the_share_of_steps_with_a_spike(x: Tensor) -> None:
    model = Net(bias=0.05)
    seen = []
    model.neurons.register_forward_hook(lambda module, args, result: seen.append(result[0].detach()))
    model(x)
    assert probed(x, bias=0.05).layers[0].rate == pytest.approx(float(torch.stack(seen).mean()))


def test_dead_and_saturated_layers_are_named(x: Tensor) -> None:
    dead, full = probed(x, bias=-5.0), probed(x, bias=20.0)
    assert dead.layers[0].silent == 1.0
    assert any("silent" in sentence for sentence in dead.advice)
    assert full.layers[0].saturated > 0.9
    assert any("saturated" in sentence for sentence in full.advice)


def test_a_drifting_input_asks_for_more_bins(x: Tensor) -> None:
    steady, drifting = probed(x), probed(x * torch.linspace(0, 2, 40).reshape(40, 1, 1))
    assert steady.layers[0].drift < 0.3 < 0.5 < drifting.layers[0].drift
    assert any("drifts" in sentence for sentence in drifting.advice)


def test_a_slow_trace_has_not_warmed_up(x: Tensor) -> None:
    found = probed(x, {"decay": 0.99})
    assert found.layers[0].warm_up == pytest.approx(1 - 0.99**40)
    assert any("warmed up" in sentence for sentence in found.advice)


def test_large_lateral_weights_do_not_settle(x: Tensor) -> None:
    calm, wild = probed(x, {"bins": 1}, bias=0.05), probed(x, {"bins": 1}, bias=0.05, lateral=1.5)
    assert calm.layers[0].unsettled == 0
    assert wild.layers[0].unsettled > 0 or wild.layers[0].residual > 0.01
    assert any("settle" in sentence for sentence in wild.advice)


def test_the_network_is_left_as_it_was(x: Tensor) -> None:
    net = tracecompile.convert(Net(), x)
    random = torch.get_rng_state()
    tracecompile.probe(net, x)
    assert all(parameter.grad is None for parameter in net.parameters())
    assert set(net.snapshot()) == {LAYOUT}
    assert torch.equal(random, torch.get_rng_state())


def test_a_rule_that_records_nothing_is_refused(x: Tensor) -> None:
    net = tracecompile.convert(Net(), x, rule="bptt")
    with pytest.raises(InvalidInput, match="bptt"):
        tracecompile.probe(net, x)
