"""The report: how wide it is, and what it follows after the conversion."""

from __future__ import annotations

import copy
from typing import Any

import pytest
import torch
from models import MODELS, weighted_loss
from torch import Tensor, nn

import tracecompile
import tracecompile.nn as snn
from tracecompile.report import ConversionReport, ExecutionReport, Footprint, LayerReport, ParameterReport

WIDE = ConversionReport(
    layers=tuple(
        LayerReport(
            f"encoder.blocks.{index}.attention.neurons",
            "spiking",
            ("encoder_blocks_spike", "another_spike"),
            ("mem (membrane)", "threshold (adaptive threshold)", "syn (synaptic current)"),
            ("spike_4",),
            "mean of each time bin",
            "spike_4 1 step ago, spike_8 12 steps ago",
            "in graph",
        )
        for index in range(2)
    ),
    parameters={"x" * 130: ParameterReport("trace", "because " * 30)},
    schedule=("lif1, step by step; " * 8,),
    notes=("Look at " + "/a/long/path" * 12 + ".py:12 for the rest of it.", "short"),
    execution=ExecutionReport("inductor", 16, "the sequence is long " * 8, 2, 1.5, ("lif1: not compiled, " * 9,)),
    memory=Footprint(10**9, 10**9, 10**9, 10**9),
)


def test_no_line_of_a_report_is_wider_than_a_page() -> None:
    lines = str(WIDE).splitlines()
    assert max(map(len, lines)) <= 80
    assert all(line == line.rstrip() for line in lines)
    whole = "".join(str(WIDE).split())
    for text in (*WIDE.notes, *WIDE.schedule, WIDE.execution.reason, str(WIDE.memory)):
        assert "".join(text.split()) in whole
    assert "- short" in lines


@pytest.mark.parametrize("rule", ["measured", "analytic", "bptt"])
@pytest.mark.parametrize("name", ["two_recurrent_layers", "lazy_attributes"])
def test_no_line_of_a_conversion_is_wider_than_a_page(rule: Any, name: str) -> None:
    case = MODELS[name]
    net = tracecompile.convert(case.factory(), case.example_inputs(5, 2), rule=rule, backend="eager")
    assert max(map(len, str(net.report).splitlines())) <= 80
    if rule == "measured":
        assert (
            max(map(len, str(tracecompile.probe(net, case.make_inputs(6, 3))).partition("\n- ")[0].splitlines())) <= 80
        )


def test_the_report_says_what_grows_with_time() -> None:
    case = MODELS["recurrent_loop"]
    for rule, grows in (("measured", False), ("bptt", True)):
        report = tracecompile.convert(case.factory(), case.example_inputs(5, 2), rule=rule, backend="eager").report
        assert report.memory.grows is grows
        assert ("whatever the number of steps" in str(report.memory)) is not grows
        assert any("grows with the sequence" in note for note in report.notes) is grows


def test_the_report_follows_requires_grad() -> None:
    case = MODELS["two_recurrent_layers"]
    model = case.factory()
    names = [name for name, _ in model.named_parameters()]
    first = dict(model.named_parameters())[names[0]].requires_grad_(False)
    net = tracecompile.convert(model, case.example_inputs(5, 2), backend="eager")

    def frozen() -> list[str]:
        return [name for name, entry in net.report.parameters.items() if entry.status == "frozen"]

    assert frozen() == names[:1]
    assert "requires_grad" in net.report.parameters[names[0]].reason
    first.requires_grad_(True)
    assert frozen() == []
    weighted_loss(case.run(net, case.make_inputs(6, 3))).backward()
    assert first.grad is not None
    assert bool(first.grad.any())
    for parameter in model.parameters():
        parameter.requires_grad_(parameter.ndim > 1)
    assert frozen() == [name for name, parameter in model.named_parameters() if parameter.ndim == 1]
    other = copy.deepcopy(net)
    for parameter in other.parameters():
        parameter.requires_grad_(True)
    assert all(entry.status != "frozen" for entry in other.report.parameters.values()), "a copy has its own"
    assert frozen(), "and leaves the net its own"


def test_a_state_is_called_what_the_user_would_write() -> None:
    class Keeps(nn.Module):
        def __init__(self) -> None:
            super().__init__()
            self.mem = torch.zeros(())

        def forward(self, current: Tensor) -> Tensor:
            self.mem = 0.9 * self.mem + current
            return snn.fast_sigmoid(5.0)(self.mem - 0.5)

    class Model(nn.Module):
        def __init__(self) -> None:
            super().__init__()
            self.net, self.top_lif = nn.Sequential(nn.Linear(4, 6), Keeps()), Keeps()

        def forward(self, x: Tensor) -> Tensor:
            self.net[1].mem = self.top_lif.mem = torch.zeros(x.shape[1], 6)
            total = torch.zeros(())
            for x_t in x:
                total = total + self.top_lif(self.net(x_t))
            return total

    net = tracecompile.convert(Model(), torch.rand(5, 2, 4))
    said = [state.split(" ")[0] for layer in net.report.layers for state in layer.states]
    assert said == ["net.1.mem", "top_lif.mem"]
