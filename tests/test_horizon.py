"""The finite-horizon factor: norms of few means over a short sequence, deep below the readout."""

from __future__ import annotations

import pytest
import torch
from torch import Tensor, nn

import tracecompile
from tracecompile import nn as snn
from tracecompile.rules.measured.horizon import Horizon
from tracecompile.rules.measured.within import HorizonOfBins

DEPTH = 6


class Deep(nn.Module):
    """Six leaky layers and a linear readout, averaged over time or read at the end."""

    def __init__(self, last: bool, detach_reset: bool, leak: float = 0.9) -> None:
        super().__init__()
        widths = [20, *[40] * DEPTH]
        self.synapses = nn.ModuleList([nn.Linear(a, b) for a, b in zip(widths[:-1], widths[1:], strict=True)])  # noqa: RUF007
        surrogate = snn.sigmoid(4.0)
        self.neurons = nn.ModuleList(
            [snn.LIF(leak=leak, detach_reset=detach_reset, surrogate=surrogate) for _ in range(DEPTH)]
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


def ratios(last: bool, detach_reset: bool, bins: int = 1, steps: int = 20, leak: float = 0.9) -> list[float]:
    torch.manual_seed(0)
    model = Deep(last, detach_reset, leak)
    x = (torch.rand(steps, 16, 20) < 0.4).float()
    net = tracecompile.convert(model, torch.zeros(5, 2, 20), bins=bins)
    weights = torch.randn(16, 3)
    found = tracecompile.compare_gradients(model, net, x, lambda outputs: (outputs * weights).sum())
    return [row.norm_ratio for row in found.rows if row.parameter.startswith("synapses") and "weight" in row.parameter]


@pytest.mark.parametrize("last", [False, True])
def test_norms_do_not_inflate_with_depth(last: bool, monkeypatch: pytest.MonkeyPatch) -> None:
    with_factor = ratios(last, detach_reset=True)
    assert all(0.6 < ratio < 1.7 for ratio in with_factor), with_factor
    monkeypatch.setattr(Horizon, "factor", lambda self, response, profile: torch.ones(()))
    without = ratios(last, detach_reset=True)
    assert max(without) / min(without) > 2 * max(with_factor) / min(with_factor), (without, with_factor)


def without_factors(horizon: HorizonOfBins, kernel: object, profile: Tensor) -> tuple[Tensor, Tensor]:
    ones = torch.ones(1, len(horizon.parts), len(horizon.parts))
    return ones, ones


@pytest.mark.parametrize(
    ("bins", "steps", "leak", "last"),
    [(2, 20, 0.9, False), (4, 20, 0.9, False), (3, 17, 0.8, False), (4, 20, 0.9, True)],
)
def test_norms_of_several_bins_do_not_inflate_with_depth(
    bins: int, steps: int, leak: float, last: bool, monkeypatch: pytest.MonkeyPatch
) -> None:
    found = ratios(last, True, bins, steps, leak)
    assert all(0.8 < ratio < 1.25 for ratio in found), found
    monkeypatch.setattr(HorizonOfBins, "_factors", without_factors)
    without = ratios(last, True, bins, steps, leak)
    assert max(without) - 1 > 2 * max(abs(ratio - 1) for ratio in found), (without, found)


def test_a_reset_in_the_graph_is_no_worse(monkeypatch: pytest.MonkeyPatch) -> None:
    found = ratios(False, False, 4)
    monkeypatch.setattr(HorizonOfBins, "_factors", without_factors)
    without = ratios(False, False, 4)
    assert max(abs(ratio - 1) for ratio in found) < max(abs(ratio - 1) for ratio in without) + 0.03, (found, without)


class Integrators(nn.Module):
    """Leaky integrators, one above the other; with a path around one of them, if it is asked for."""

    def __init__(self, around: bool) -> None:
        super().__init__()
        self.synapses = nn.ModuleList([nn.Linear(a, b) for a, b in ((3, 5), (5, 5), (5, 2))])
        self.cells = nn.ModuleList([snn.LI(leak=leak) for leak in (0.97, 0.9, 0.98)])
        self.around = around

    def forward(self, x: Tensor) -> Tensor:
        states: list[Tensor | None] = [None] * 3
        total = torch.zeros(x.shape[1], 2, dtype=x.dtype)
        for x_t in x:
            below, states[0] = self.cells[0](self.synapses[0](x_t), states[0])
            above, states[1] = self.cells[1](self.synapses[1](below), states[1])
            out, states[2] = self.cells[2](self.synapses[2](above + below if self.around else above), states[2])
            total = total + out
        return total / x.shape[0]


@pytest.mark.parametrize(("bins", "steps"), [(2, 20), (4, 23), (3, 300)])
@pytest.mark.parametrize("around", [False, True])
def test_where_nothing_but_time_is_lost_nothing_is(
    bins: int, steps: int, around: bool, monkeypatch: pytest.MonkeyPatch
) -> None:
    """A constant input through leaky neurons, whose kernel is known; what two paths hand on is mixed by their norms."""
    torch.manual_seed(0)
    model = Integrators(around).double()
    x = torch.randn(1, 4, 3, dtype=torch.float64).expand(steps, 4, 3)
    weights = torch.randn(4, 2, dtype=torch.float64)

    def worst() -> float:
        net = tracecompile.convert(model, torch.zeros(5, 2, 3, dtype=torch.float64), bins=bins)
        rows = tracecompile.compare_gradients(model, net, x, lambda outputs: (outputs * weights).sum()).rows
        of_signals = [row for row in rows if "bias" in row.parameter or row.parameter == "synapses.0.weight"]
        return max(abs(row.norm_ratio - 1) + abs(row.cosine - 1) for row in of_signals)

    found = worst()
    assert found < (0.02 if around else 1e-4), found
    monkeypatch.setattr(HorizonOfBins, "_factors", without_factors)
    assert worst() > 4 * found


def test_a_sample_does_not_depend_on_what_else_is_in_the_batch() -> None:
    torch.manual_seed(0)
    model = Deep(False, True).double()
    x = (torch.rand(14, 3, 20) < torch.tensor([0.2, 0.4, 0.7]).reshape(1, 3, 1)).double()
    net = tracecompile.convert(model, x[:5, :2], bins=4)
    weights = torch.randn(3, 3, dtype=torch.float64)
    parameters = list(model.parameters())
    whole = torch.autograd.grad((net(x) * weights).sum(), parameters)
    alone = [torch.autograd.grad((net(x[:, i : i + 1]) * weights[i]).sum(), parameters) for i in range(3)]
    for joined, parts in zip(whole, zip(*alone, strict=True), strict=True):
        assert joined.norm() > 0
        torch.testing.assert_close(joined, sum(parts[1:], parts[0]), rtol=1e-9, atol=1e-12)
