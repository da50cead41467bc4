"""What people compute of all steps after the loop: where its derivative needs them all, backward computes it again."""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

import pytest
import torch
import torch.nn.functional as F
from support.held import live_bytes
from support.oracle import HIDDEN, INPUTS, OUTPUTS, Program, require_right, spike
from torch import Tensor, nn

import tracecompile
from tracecompile.exact import exact_value


class Net(nn.Module):
    """A layer of leaky neurons, a readout, and what a subclass makes of the outputs of all steps."""

    def __init__(self) -> None:
        super().__init__()
        self.inp, self.out = nn.Linear(INPUTS, HIDDEN), nn.Linear(HIDDEN, OUTPUTS)

    def forward(self, x: Tensor) -> Any:
        v, outs, spikes = x.new_zeros(x.shape[1], HIDDEN), [], []
        for t in range(x.shape[0]):
            v = 0.9 * v + self.inp(x[t])
            z = spike(v - 0.8)
            v = v - 0.8 * z
            outs.append(self.out(z))
            spikes.append(z)
        return self.after(torch.stack(outs), torch.stack(spikes))

    def after(self, outs: Tensor, spikes: Tensor) -> Any:
        raise NotImplementedError


class Spread(Net):
    def after(self, outs: Tensor, spikes: Tensor) -> Any:
        return outs.mean(0), spikes.var(0)


class Power(Net):
    def after(self, outs: Tensor, spikes: Tensor) -> Any:
        return (outs**2).mean(), spikes.mean((0, 1))


class SoftMaximum(Net):
    def after(self, outs: Tensor, spikes: Tensor) -> Any:
        return {"soft": outs.logsumexp(0), "loudest": outs.sort(dim=0)[0][-1]}


class SigmoidMean(Net):
    def after(self, outs: Tensor, spikes: Tensor) -> Any:
        return torch.sigmoid(outs).mean(0), outs.norm(dim=0), outs.prod(0)


class AttentionOverTime(Net):
    """The steps are weighed by what a layer makes of them; the weights sum to one over time."""

    def __init__(self) -> None:
        super().__init__()
        self.score = nn.Linear(OUTPUTS, OUTPUTS, bias=False)

    def after(self, outs: Tensor, spikes: Tensor) -> Any:
        return (F.softmax(self.score(outs), dim=0) * outs).sum(0)


class ReadoutOfRunningMean(Net):
    """A layer behind what mixes the steps."""

    def __init__(self) -> None:
        super().__init__()
        self.head = nn.Linear(HIDDEN, 3)

    def after(self, outs: Tensor, spikes: Tensor) -> Any:
        smooth = spikes.cumsum(0) / spikes.shape[0]
        return torch.tanh(self.head(smooth)).mean(0), outs.sum(0)


class Pooled(Net):
    def after(self, outs: Tensor, spikes: Tensor) -> Any:
        pooled = F.avg_pool1d(outs.permute(1, 2, 0), 3)
        return torch.tanh(pooled).amax(-1)


class PerLength(Net):
    """Another program for each length, of which each keeps the steps."""

    def after(self, outs: Tensor, spikes: Tensor) -> Any:
        late = outs[5:] if outs.shape[0] > 10 else outs
        return late.std(0, unbiased=False)


class ForTheRecord(Net):
    """A record that is returned as it is, beside what needs it."""

    def after(self, outs: Tensor, spikes: Tensor) -> Any:
        return outs, spikes.detach(), outs.pow(3).sum(0)


class DetachedBeside(Net):
    """What is detached comes back without a graph, though backward runs again for what is beside it."""

    def after(self, outs: Tensor, spikes: Tensor) -> Any:
        return spikes.detach(), outs.detach().var(0), outs.pow(3).sum(0)


class WrittenInto(Net):
    def after(self, outs: Tensor, spikes: Tensor) -> Any:
        outs = outs * 1.5
        outs += 0.1
        outs.clamp_(min=-1.0)
        return outs.pow(2).sum(0)


FORMS = (
    Spread, Power, SoftMaximum, SigmoidMean, AttentionOverTime, ReadoutOfRunningMean, Pooled, PerLength, ForTheRecord,
    DetachedBeside, WrittenInto,
)  # fmt: skip


@pytest.mark.parametrize("make", FORMS, ids=lambda make: make.__name__)
def test_the_net_is_the_model(make: Callable[[], nn.Module]) -> None:
    require_right(Program(make))


class ALastRow(Net):
    def after(self, outs: Tensor, spikes: Tensor) -> Any:
        return torch.tanh(self.out(spikes))[-1]


def test_a_row_of_work_on_the_whole_has_the_values_of_the_whole() -> None:
    net = tracecompile.convert(ALastRow(), torch.randn(6, 2, INPUTS))
    nodes = net.program.epilogue.graph.nodes
    exact = [node for node in nodes if node.target is exact_value]
    assert exact
    assert any(node.target == "out" for node in nodes)  # the product of all steps, for its bits


def test_conversion_leaves_nothing_behind() -> None:
    class Squashed(Net):
        def after(self, outs: Tensor, spikes: Tensor) -> Any:
            return torch.sigmoid(outs)

    model, x, alive = Squashed(), torch.randn(6, 2, INPUTS), []
    for _ in range(3):
        tracecompile.convert(model, x)
        alive.append(live_bytes([]))
    assert alive[2] == alive[1]


def test_it_is_said_in_the_report() -> None:
    net = tracecompile.convert(Spread(), torch.randn(6, 2, INPUTS))
    (note,) = (note for note in net.report.notes if "needs the values of all time steps" in note)
    assert f"{__file__}:" in note


class Dropped(Net):
    def after(self, outs: Tensor, spikes: Tensor) -> Any:
        return F.dropout(outs, 0.5, self.training).pow(2).mean(0)


def test_what_is_random_is_drawn_again() -> None:
    torch.manual_seed(0)
    model = Dropped().double()
    x = torch.randn(8, 3, INPUTS, dtype=torch.float64)
    net = tracecompile.convert(model, x, bins=8)
    found = []
    for module in (model, net):
        model.zero_grad()
        torch.manual_seed(1)
        result = module(x)
        drawn = torch.rand(1)
        result.sum().backward()
        found.append([result.detach(), drawn, *(p.grad.clone() for p in model.parameters() if p.grad is not None)])
    for one, other in zip(*found, strict=True):
        assert torch.allclose(one, other, rtol=1e-9, atol=1e-12)
    assert torch.equal(found[0][0], found[1][0])


def test_an_input_that_was_changed_is_refused() -> None:
    x = torch.randn(6, 2, INPUTS)
    net = tracecompile.convert(Spread(), x)
    spread = net(x)[1]
    x.add_(1.0)
    with pytest.raises(RuntimeError, match="modified in place"):
        spread.sum().backward()
