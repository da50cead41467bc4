"""What comes back beside the output: detached records, single numbers added up, sums that start as the number 0."""

from __future__ import annotations

from typing import Any

import pytest
import torch
import torch.nn.functional as F
from support.oracle import HIDDEN, INPUTS, OUTPUTS, Program, require_right, spike
from torch import Tensor, nn

import tracecompile


class Net(nn.Module):
    """A layer of leaky neurons and a readout, for the records below."""

    def __init__(self) -> None:
        super().__init__()
        self.inp, self.out = nn.Linear(INPUTS, HIDDEN), nn.Linear(HIDDEN, OUTPUTS)

    def step(self, x_t: Tensor, v: Tensor) -> tuple[Tensor, Tensor]:
        v = 0.9 * v + self.inp(x_t)
        z = spike(v - 0.8)
        return z, v - 0.8 * z


# What requires a gradient.


class DetachedSpikes(Net):
    def forward(self, x: Tensor) -> Any:
        v, total, spikes = x.new_zeros(x.shape[1], HIDDEN), 0.0, []
        for x_t in x:
            z, v = self.step(x_t, v)
            total = total + self.out(z)
            spikes.append(z.detach())
        return total, torch.stack(spikes)


class DataInDictionary(Net):
    def forward(self, x: Tensor) -> Any:
        v, total, spikes = x.new_zeros(x.shape[1], HIDDEN), 0.0, []
        for x_t in x:
            z, v = self.step(x_t, v)
            total = total + self.out(z)
            spikes.append(z.data)
        return {"out": total, "spikes": torch.stack(spikes)}


class RecordedWithoutGrad(Net):
    def forward(self, x: Tensor) -> Any:
        v, outs, voltages = x.new_zeros(x.shape[1], HIDDEN), [], []
        for x_t in x:
            z, v = self.step(x_t, v)
            outs.append(self.out(z))
            with torch.no_grad():
                voltages.append(2 * v)
        return torch.stack(outs), torch.stack(voltages), v


class DetachedAtTheEnd(Net):
    def forward(self, x: Tensor) -> Any:
        v, total = x.new_zeros(x.shape[1], HIDDEN), 0.0
        for x_t in x:
            z, v = self.step(x_t, v)
            total = total + self.out(z)
        return total, v.detach(), z.detach()


class BooleanRecord(Net):
    def forward(self, x: Tensor) -> Any:
        v, total, fired = x.new_zeros(x.shape[1], HIDDEN), 0.0, []
        for x_t in x:
            z, v = self.step(x_t, v)
            total = total + self.out(z)
            fired.append(z > 0.5)
        return total, torch.stack(fired)


class WinnerOfEachStep(Net):
    def forward(self, x: Tensor) -> Any:
        v, largest, winners = x.new_zeros(x.shape[1], HIDDEN), [], []
        for x_t in x:
            z, v = self.step(x_t, v)
            y = self.out(z)
            largest.append(y.max(1).values)
            winners.append(y.argmax(1))
        return torch.stack(largest), torch.stack(winners)


class InputRecord(Net):
    def forward(self, x: Tensor) -> Any:
        v, total, scaled = x.new_zeros(x.shape[1], HIDDEN), 0.0, []
        for x_t in x:
            z, v = self.step(x_t, v)
            total = total + self.out(z)
            scaled.append(2 * x_t)
        return total, torch.stack(scaled)


class FirstLayerFrozen(Net):
    def __init__(self) -> None:
        super().__init__()
        self.inp.requires_grad_(False)

    def forward(self, x: Tensor) -> Any:
        v, total, spikes = x.new_zeros(x.shape[1], HIDDEN), 0.0, []
        for x_t in x:
            z, v = self.step(x_t, v)
            total = total + self.out(z)
            spikes.append(z)
        return total, torch.stack(spikes), v


# Single numbers.


class SpikePenalty(Net):
    def forward(self, x: Tensor) -> Any:
        v, total, penalty = x.new_zeros(x.shape[1], HIDDEN), 0.0, 0.0
        for x_t in x:
            z, v = self.step(x_t, v)
            total = total + self.out(z)
            penalty = penalty + z.sum()
        return total, 1e-2 * penalty


class PenaltyFromTensor(Net):
    def forward(self, x: Tensor) -> Any:
        v, penalty, outs = x.new_zeros(x.shape[1], HIDDEN), torch.zeros(()), []
        for x_t in x:
            z, v = self.step(x_t, v)
            penalty = penalty + (z.mean(0) ** 2).sum()
            outs.append(self.out(z))
        return torch.stack(outs).mean(0), penalty / x.shape[0]


class PenaltyFromNone(Net):
    def forward(self, x: Tensor) -> Any:
        v, penalty, outs, spikes = x.new_zeros(x.shape[1], HIDDEN), None, [], []
        for x_t in x:
            z, v = self.step(x_t, v)
            outs.append(self.out(z))
            spikes.append(z.detach())
            cost = z.mean(0).pow(2).sum()
            penalty = cost if penalty is None else penalty + cost
        return torch.stack(outs).mean(0), penalty, torch.stack(spikes).sum(0)


class PenaltyOfOneElement(Net):
    def forward(self, x: Tensor) -> Any:
        v, total, penalty = x.new_zeros(x.shape[1], HIDDEN), torch.zeros(1).to(x), torch.zeros(1).to(x)
        for x_t in x:
            z, v = self.step(x_t, v)
            total = total + self.out(z)
            penalty += (z - 0.1).pow(2).sum()
        return total, penalty


class PenaltiesListed(Net):
    def forward(self, x: Tensor) -> Any:
        v, outs, costs = x.new_zeros(x.shape[1], HIDDEN), [], []
        for x_t in x:
            z, v = self.step(x_t, v)
            outs.append(self.out(z))
            costs.append(z.mean())
        return sum(outs), sum(costs) / len(costs)


class LossWithin(Net):
    def forward(self, x: Tensor) -> Any:
        v, total, loss = x.new_zeros(x.shape[1], HIDDEN), 0.0, torch.tensor(0.0).to(x)
        for x_t in x:
            z, v = self.step(x_t, v)
            y = self.out(z)
            total = total + y
            loss = loss + F.mse_loss(y, torch.ones_like(y))
        return total, loss / x.shape[0]


class WeightDecayWithin(Net):
    def forward(self, x: Tensor) -> Any:
        v, total, decay = x.new_zeros(x.shape[1], HIDDEN), 0.0, 0.0
        for x_t in x:
            z, v = self.step(x_t, v)
            total = total + self.out(z)
            decay = decay + self.out.weight.norm()
        return total, decay


# Several reductions, and sums that start as the number 0.


class SumOfReductions(Net):
    def forward(self, x: Tensor) -> Any:
        v, y = x.new_zeros(x.shape[1], HIDDEN), x.new_zeros(x.shape[1], OUTPUTS)
        currents, membranes, spikes = [], [], []
        for x_t in x:
            z, v = self.step(x_t, v)
            current = self.out(z)
            y = 0.8 * y + current
            currents.append(current)
            membranes.append(y)
            spikes.append(z)
        over_all = torch.stack(spikes).mean((0, 2))[:, None]
        return torch.stack(currents).sum(0) + torch.stack(membranes).max(0)[0] + over_all


class TotalFromZeroRandomStart(Net):
    def forward(self, x: Tensor) -> Any:
        total = 0
        v = 0.3 * torch.randn(x.size(1), HIDDEN)
        for x_t in x:
            z, v = self.step(x_t, v)
            total = total + self.out(z)
        return total / x.size(0)


class CountsFromZeroRandomStart(Net):
    def forward(self, x: Tensor) -> Any:
        total, count = 0, 0
        v = 0.3 * torch.rand(x.size(1), HIDDEN).to(x)
        for x_t in x:
            z, v = self.step(x_t, v)
            total = total + self.out(z)
            count = count + z.detach()
        return total, count


class LeakyTotalDrawnInPlace(Net):
    def forward(self, x: Tensor) -> Any:
        outs, y = 0.0, 0
        v = torch.empty(x.size(1), HIDDEN).uniform_(0, 0.5).to(x)
        for x_t in x:
            z, v = self.step(x_t, v)
            y = 0.9 * y + self.out(z)
            outs = outs + y
        return outs


FORMS = [
    DetachedSpikes, DataInDictionary, RecordedWithoutGrad, DetachedAtTheEnd, BooleanRecord, WinnerOfEachStep,
    InputRecord, FirstLayerFrozen, SpikePenalty, PenaltyFromTensor, PenaltyFromNone, PenaltyOfOneElement,
    PenaltiesListed,
    LossWithin, WeightDecayWithin, SumOfReductions, TotalFromZeroRandomStart, CountsFromZeroRandomStart,
    LeakyTotalDrawnInPlace,
]  # fmt: skip


@pytest.mark.parametrize("form", FORMS, ids=lambda form: form.__name__)
def test_the_net_returns_what_the_model_returns(form: type[nn.Module]) -> None:
    require_right(Program(form))


@pytest.mark.parametrize("form", [SpikePenalty, PenaltyFromTensor, LossWithin], ids=lambda form: form.__name__)
def test_a_penalty_is_learned_from_with_few_bins(form: type[nn.Module]) -> None:
    torch.manual_seed(0)
    model = form()
    x = 2 * torch.randn(20, 4, INPUTS)
    net = tracecompile.convert(model, x, backend="eager", bins=4)
    comparison = tracecompile.compare_gradients(model, net, (x,), lambda given: given[1])
    assert all(row.cosine > 0.9 for row in comparison.rows if row.parameter.startswith("inp"))


class StepWithRecord(Net):
    """One step a call: it returns its spikes without a gradient, and keeps its membrane itself."""

    def __init__(self) -> None:
        super().__init__()
        self.v: Any = None

    def reset(self) -> None:
        self.v = None

    def forward(self, x_t: Tensor) -> Any:
        if self.v is None:
            self.v = torch.zeros(x_t.shape[0], HIDDEN, dtype=x_t.dtype)
        z, self.v = self.step(x_t, self.v)
        return self.out(z), z.detach(), self.v


def test_a_step_returns_a_gradient_where_the_model_does() -> None:
    require_right(Program(StepWithRecord, step=True))


def test_the_gradient_of_an_input_that_is_recorded_is_the_models() -> None:
    torch.manual_seed(0)
    model = InputRecord()
    x = 2 * torch.randn(6, 3, INPUTS)
    net = tracecompile.convert(model, x, backend="eager", bins=6)
    found = []
    for module in (model, net):
        given = x.clone().requires_grad_()
        total, scaled = module(given)
        assert scaled.requires_grad
        (total.sum() + (scaled**2).sum()).backward()
        found.append(given.grad)
    torch.testing.assert_close(found[0], found[1])


def test_a_net_whose_parameters_are_all_frozen_returns_no_graph() -> None:
    model = DetachedSpikes().requires_grad_(False)
    x = 2 * torch.randn(6, 3, INPUTS)
    net = tracecompile.convert(model, x, backend="eager")
    total, spikes = net(x)
    assert not total.requires_grad
    assert not spikes.requires_grad
    total, spikes = net(x.clone().requires_grad_())
    assert total.requires_grad
    assert not spikes.requires_grad
