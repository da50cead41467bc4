"""Where the bins of a second pass lie."""

from __future__ import annotations

from itertools import pairwise

import pytest
import torch
from hypothesis import given
from hypothesis import strategies as st
from torch import Tensor, nn

import tracecompile
import tracecompile.nn as snn
from tracecompile.layers import Source
from tracecompile.runtime.backward.placing import bins_for
from tracecompile.runtime.backward.signals import TimedSignal, is_uneven
from tracecompile.runtime.bins import Bins
from tracecompile.runtime.module import session_of

STEPS = 60


class Net(nn.Module):
    def __init__(self) -> None:
        super().__init__()
        self.fc, self.lif = nn.Linear(3, 4), snn.LIF(leak=0.9)

    def forward(self, x: Tensor) -> Tensor:
        state = None
        outputs = []
        for x_t in x:
            spikes, state = self.lif(self.fc(x_t), state)
            outputs.append(spikes)
        return torch.stack(outputs)


def placed(values: Tensor, count: int) -> Bins:
    """Returns the bins for signals [T, B, 4] on the outputs of the network."""
    net = tracecompile.convert(Net(), torch.rand(STEPS, 2, 3))
    outputs = net(3 * torch.rand(STEPS, 2, 3))
    assert outputs.requires_grad
    window = session_of(net).window
    assert window is not None
    assert window.record.moment is not None
    signal = TimedSignal(Source("spikes", "spikes"), 0, values)
    return bins_for(window.program, window.record.moment, [signal], Bins.over(STEPS, count))


def signal_at(*steps: int) -> Tensor:
    values = torch.zeros(STEPS, 2, 4)
    for step in steps:
        values[step] = 1.0
    return values


def test_bins_are_narrow_before_a_signal_and_one_bin_covers_what_comes_after_it() -> None:
    edges = placed(signal_at(20), 6).edges
    assert edges[0] == 0
    assert edges[-2:] == (21, STEPS)
    widths = [after - before for before, after in pairwise(edges[:-1])]
    assert widths[-1] <= 3
    assert widths[0] >= 3 * widths[-1]


def test_signals_everywhere_leave_the_bins_as_they_were() -> None:
    widths = placed(torch.ones(STEPS, 2, 4), 6).widths
    assert max(widths) - min(widths) <= 4


def test_one_bin_stays_one_bin() -> None:
    assert placed(signal_at(20), 1).edges == (0, STEPS)


@given(st.sets(st.integers(0, STEPS - 1), min_size=1), st.integers(2, STEPS - 1))
def test_there_are_never_more_bins_than_before_and_none_is_empty(steps: set[int], count: int) -> None:
    bins = placed(signal_at(*steps), count)
    assert bins.count <= count
    assert min(bins.widths) >= 1
    assert bins.edges[0] == 0
    assert bins.edges[-1] == STEPS
    if max(steps) < STEPS - 1:
        assert max(steps) + 1 in bins.edges


@pytest.mark.parametrize(("loss", "uneven"), [("constant", False), ("per bin", False), ("drift", False), ("one", True)])
def test_what_counts_as_uneven(loss: str, uneven: bool) -> None:
    bins = Bins.over(STEPS, 6)
    values = {
        "constant": torch.ones(STEPS, 2, 4),
        "per bin": torch.arange(6.0).repeat_interleave(10).reshape(-1, 1, 1).expand(-1, 2, 4),
        "drift": torch.linspace(1.0, 2.0, STEPS).reshape(-1, 1, 1).expand(-1, 2, 4),
        "one": signal_at(20),
    }
    assert is_uneven(values[loss], bins) == uneven
