"""The finite-horizon factor: norms of one mean over a short sequence, deep below the readout."""

from __future__ import annotations

import pytest
import torch
from torch import Tensor, nn

import tracecompile
from tracecompile import nn as snn
from tracecompile.rules.measured.horizon import Horizon

DEPTH = 6


class Deep(nn.Module):
    """Six leaky layers and a linear readout, averaged over time or read at the end."""

    def __init__(self, last: bool, detach_reset: bool) -> None:
        super().__init__()
        widths = [20, *[40] * DEPTH]
        self.synapses = nn.ModuleList([nn.Linear(a, b) for a, b in zip(widths[:-1], widths[1:], strict=True)])  # noqa: RUF007
        surrogate = snn.sigmoid(4.0)
        self.neurons = nn.ModuleList(
            [snn.LIF(leak=0.9, detach_reset=detach_reset, surrogate=surrogate) for _ in range(DEPTH)]
        )
        self.readout, self.integrator = nn.Linear(40, 3), snn.LI(leak=0.9)
        self.last = last
        for synapse in self.synapses:
            nn.init.normal_(synapse.weight, 0.02, 1.2 / synapse.in_features**0.5)

    def forward(self, x: Tensor) -> Tensor:
        states: list[Tensor | None] = [None] * DEPTH
        membrane, outputs = None, []
        for t in range(x.shape[0]):
            signal = x[t]
            for index, (synapse, neuron) in enumerate(zip(self.synapses, self.neurons, strict=True)):
                signal, states[index] = neuron(synapse(signal), states[index])
            output, membrane = self.integrator(self.readout(signal), membrane)
            outputs.append(output)
        return outputs[-1] if self.last else torch.stack(outputs).mean(0)


def ratios(last: bool, detach_reset: bool) -> list[float]:
    torch.manual_seed(0)
    model = Deep(last, detach_reset)
    x = (torch.rand(20, 16, 20) < 0.4).float()
    net = tracecompile.convert(model, x, bins=1)
    weights = torch.randn(16, 3)
    found = tracecompile.compare_gradients(model, net, x, lambda outputs: (outputs * weights).sum())
    return [row.norm_ratio for row in found.rows if row.parameter.startswith("synapses") and "weight" in row.parameter]


@pytest.mark.parametrize("last", [False, True])
def test_norms_do_not_inflate_with_depth(last: bool, monkeypatch: pytest.MonkeyPatch) -> None:
    with_factor = ratios(last, detach_reset=True)
    assert all(0.6 < ratio < 1.7 for ratio in with_factor), with_factor
    monkeypatch.setattr(Horizon, "factor", lambda self, response, profile: 1.0)
    without = ratios(last, detach_reset=True)
    assert max(without) / min(without) > 2 * max(with_factor) / min(with_factor), (without, with_factor)
