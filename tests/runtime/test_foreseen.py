"""Distinct cores: their compilers begin before any is waited for, and with nothing that no sequence asks for."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import pytest
import torch
from torch import Tensor, nn

import tracecompile
import tracecompile.nn as snn
from tracecompile.runtime.engine import compiled, kernels
from tracecompile.runtime.engine.native import Begun, Native


class TwoKinds(nn.Module):
    """A layer without recurrence, one with, and one more like the first."""

    def __init__(self) -> None:
        super().__init__()
        self.below = nn.ModuleList(nn.Linear(6, 6) for _ in range(4))
        self.neurons = nn.ModuleList([snn.LIF(leak=0.9), snn.RLIF(6), snn.LIF(leak=0.8)])

    def forward(self, x: Tensor) -> Tensor:
        states: list[Any] = [None] * 3
        total: Any = 0.0
        for x_t in x:
            for place, neuron in enumerate(self.neurons):
                x_t, states[place] = neuron(self.below[place](x_t), states[place])
            total = total + self.below[3](x_t)
        return total


@pytest.fixture
def events(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> list[str]:
    """Returns what compilers do, in short scans."""
    monkeypatch.setenv("TORCHINDUCTOR_CACHE_DIR", str(tmp_path))
    monkeypatch.setattr(compiled, "PIECE", 3)
    monkeypatch.setattr(compiled, "RECURRENT_PIECE", 2)
    seen: list[str] = []
    begun, finished, dropped = kernels.begun, Begun.finished, Begun.dropped

    def begins(*arguments: Any) -> Begun:
        seen.append("begins")
        return begun(*arguments)

    def is_waited_for(one: Begun) -> Native:
        seen.append("waits")
        return finished(one)

    def is_dropped(one: Begun) -> None:
        seen.append("dropped")
        dropped(one)

    monkeypatch.setattr(kernels, "begun", begins)
    monkeypatch.setattr(Begun, "finished", is_waited_for)
    monkeypatch.setattr(Begun, "dropped", is_dropped)
    return seen


def trained(net: tracecompile.TracedModule, x: Tensor) -> list[Tensor]:
    """Returns the results of a call, and all gradients."""
    net.zero_grad()
    found = net(x)
    found.square().sum().backward()
    return [found.detach(), *(parameter.grad for parameter in net.parameters() if parameter.grad is not None)]


def converted(backend: Any) -> tracecompile.TracedModule:
    """Returns the net, converted from 12 steps of 4 samples."""
    torch.manual_seed(0)
    return tracecompile.convert(TwoKinds().double(), torch.rand(12, 4, 6).double(), bins=2, backend=backend)


def test_all_compilers_begin_before_one_is_waited_for(events: list[str]) -> None:
    net, reference = converted("inductor"), converted("eager")
    x = 3 * torch.rand(12, 4, 6).double()
    torch.testing.assert_close(trained(net, x), trained(reference, x), rtol=1e-9, atol=1e-10)
    assert events == ["begins", "begins", "waits", "waits"]
    execution = net.report.execution
    assert execution is not None
    assert (execution.compiled, execution.obstacles) == (2, ()), "the layers of one kind share what is compiled"
    trained(net, x)
    trained(net, 3 * torch.rand(24, 7, 6).double())
    assert len(events) == 4, "other lengths and batches are served"


def test_another_batch_than_the_example_is_compiled_when_it_comes(events: list[str]) -> None:
    net = converted("inductor")
    trained(net, torch.rand(12, 5, 6).double())
    assert events == ["begins", "waits", "begins", "waits"]


def test_what_nobody_asks_for_is_stopped(events: list[str], monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> None:
    net = converted("inductor")
    begin = compiled.Source.begin

    def also_in_vain(source: compiled.Source, arguments: list[Tensor]) -> None:
        begin(source, arguments)
        source.kernels.begin(("in vain", source.key), source.code, arguments)

    monkeypatch.setattr(compiled.Source, "begin", also_in_vain)
    x = torch.rand(12, 4, 6).double()
    trained(net, x)
    assert list(tmp_path.rglob("building-*"))
    trained(net, x)
    assert events.count("dropped") == 2
    assert not list(tmp_path.rglob("building-*"))
