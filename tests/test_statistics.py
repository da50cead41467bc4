"""Traces, bins and merging, against what they must be by their definitions."""

from __future__ import annotations

import pytest
import torch

import tracecompile
from tracecompile import nn as snn
from tracecompile.rules.sums import BinSums
from tracecompile.runtime.bins import Bins, StreamClock


@pytest.mark.parametrize(("decay", "steps"), [(0.9, 5), (0.9, 50), (0.99, 25), (None, 7)])
def test_a_trace_of_a_constant_is_inverted_to_it(decay: float | None, steps: int) -> None:
    trace = BinSums(decay, 1)
    for _ in range(steps):
        trace.fold(torch.full((3,), 0.3), 0, 1)
    torch.testing.assert_close(trace.mean(0), torch.full((3,), 0.3))
    if decay is not None:
        # without the start-up correction the rate would read too low: 0.123 at decay 0.9 after 5 steps
        uncorrected = trace.rows[0] * (1 - decay)
        torch.testing.assert_close(uncorrected, torch.full((3,), 0.3 * (1 - decay**steps)))


def test_a_trace_weighs_the_past_by_its_decay() -> None:
    trace = BinSums(0.5, 1)
    for value in (1.0, 0.0, 0.0):
        trace.fold(torch.tensor(value), 0, 1)
    torch.testing.assert_close(trace.mean(0), torch.tensor(0.25 / 1.75))


def test_charge_is_conserved_by_a_subtractive_reset() -> None:
    """v_T = tr_I(T) - theta tr_y(T) where the traces decay with the leak: true of any input, free of any rate curve."""
    leak, threshold = 0.875, 1.0  # exact in binary
    neuron = snn.LIF(leak=leak, threshold=threshold)
    torch.manual_seed(0)
    currents, spikes = BinSums(leak, 1), BinSums(leak, 1)
    state = None
    for _ in range(60):
        current = 0.3 * torch.rand(8, dtype=torch.float64)
        output, state = neuron.double()(current, state)
        currents.fold(current, 0, 1)
        spikes.fold(output, 0, 1)
    assert spikes.rows[0].sum() > 0
    torch.testing.assert_close(state, currents.rows[0] - threshold * spikes.rows[0])


def test_bins_are_floor_of_t_k_over_t() -> None:
    bins = Bins.over(10, 4)
    assert [bins.of(t) for t in range(10)] == [t * 4 // 10 for t in range(10)]
    assert sum(bins.widths) == 10
    assert Bins.over(3, 8).count == 3


@pytest.mark.parametrize("delay", [1, 2, 5])
def test_overlap_counts_the_steps_that_were_made_in_each_bin(delay: int) -> None:
    bins = Bins.over(11, 3)
    counted = [[0.0] * 3 for _ in range(3)]
    for t in range(delay, 11):
        counted[bins.of(t)][bins.of(t - delay)] += 1 / bins.widths[bins.of(t)]
    for found, expected in zip(bins.overlap(delay), counted, strict=True):
        assert found == pytest.approx(expected)


@pytest.mark.parametrize("capacity", [1, 2, 4, 5])
def test_merging_a_stream_keeps_every_step_in_order(capacity: int) -> None:
    clock = StreamClock(capacity)
    trace = BinSums(None, capacity)
    for step in range(37):
        if clock.must_merge():
            clock.merge()
            trace.merge()
        trace.fold(torch.tensor(float(step)), clock.tick(), 1)
    bins = clock.bins
    assert bins.edges[-1] == 37
    assert bins.count <= capacity
    for index, (first, last) in enumerate(zip(bins.edges[:-1], bins.edges[1:], strict=True)):
        assert float(trace.mean(index)) == pytest.approx((first + last - 1) / 2)


@pytest.mark.parametrize("rule", ["analytic", "measured"])
def test_a_decay_forgets_the_beginning(rule: str) -> None:
    class Net(torch.nn.Module):
        def __init__(self) -> None:
            super().__init__()
            self.fc, self.neuron = torch.nn.Linear(3, 4), snn.LIF(leak=0.9)

        def forward(self, x: torch.Tensor) -> torch.Tensor:
            state, total = None, 0.0
            for t in range(x.shape[0]):
                spikes, state = self.neuron(self.fc(x[t]), state)
                total = total + spikes
            return total

    torch.manual_seed(0)
    model, x = Net(), torch.rand(60, 2, 3)
    net = tracecompile.convert(model, x, rule=rule, decay={"neuron": 0.5})
    assert net.report.layers[0].trace == "decay 0.5"
    changed = x.clone()
    changed[0] = 0.0
    whole = tracecompile.convert(model, x, rule=rule)
    late, late_changed, mean, mean_changed = (
        torch.autograd.grad(n(i).sum(), model.fc.weight)[0]
        for n, i in ((net, x), (net, changed), (whole, x), (whole, changed))
    )
    assert late.norm() > 0
    assert (late - late_changed).norm() / late.norm() < 0.2 * (mean - mean_changed).norm() / mean.norm()
