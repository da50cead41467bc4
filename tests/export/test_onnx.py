"""ONNX: the step in a loop, with what precedes and follows it, is the network."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import pytest
import torch
from requirements import library
from torch import Tensor, nn

import tracecompile
import tracecompile.nn as snn
from tracecompile.errors import InvalidInput

onnxruntime: Any = library("onnxruntime")
pytestmark = [pytest.mark.libraries, pytest.mark.filterwarnings("ignore")]


class Recurrent(nn.Module):
    """Lateral weights, a state made of the first current, a mean over time."""

    def __init__(self) -> None:
        super().__init__()
        self.fc, self.cell, self.out = nn.Linear(6, 9), snn.RLIF(9), nn.Linear(9, 3)

    def forward(self, x: Tensor) -> tuple[Tensor, Tensor]:
        state, total, spikes = None, 0.0, []
        for x_t in x:
            s, state = self.cell(2 * self.fc(x_t), state)
            total = total + self.out(s)
            spikes.append(s)
        return total / x.shape[0], torch.stack(spikes)


def run(path: Path, given: dict[str, Tensor]) -> dict[str, Tensor]:
    session = onnxruntime.InferenceSession(str(path))
    names = [each.name for each in session.get_outputs()]
    values = session.run(names, {name: value.numpy() for name, value in given.items()})
    return dict(zip(names, map(torch.from_numpy, values), strict=True))


@pytest.mark.parametrize("saved", [False, True])
def test_the_step_in_a_loop_is_the_network(tmp_path: Path, saved: bool) -> None:
    torch.manual_seed(0)
    net = tracecompile.convert(Recurrent(), 2 * torch.randn(5, 2, 6))
    if saved:
        tracecompile.save(net, tmp_path / "net")
        net = tracecompile.load(tmp_path / "net")
    exported = tracecompile.export(net, "onnx", tmp_path / "net.onnx")
    assert net.training
    about, x = exported.description, 2 * torch.randn(11, 4, 6)
    assert [state["start"] for state in about["states"]] == [0.0, 0.0]
    states = {state["name"]: torch.zeros(4, *state["shape"][1:]) for state in about["states"]}
    each: dict[str, list[Tensor]] = {output["name"]: [] for output in about["outputs"]}
    for x_t in x:
        found = run(tmp_path / "net.onnx", {"x_t": x_t, **states})
        states = {state["name"]: found[state["next"]] for state in about["states"]}
        for name, values in each.items():
            values.append(found[name])
    together = {o["name"]: torch.stack(each[o["name"]]) for o in about["outputs"]}
    together = {
        o["name"]: together[o["name"]].sum(0) if o["collect"] == "sum" else together[o["name"]]
        for o in about["outputs"]
    }
    expected, spikes = net.eval()(x)
    stacked = next(o["name"] for o in about["outputs"] if o["collect"] == "stack")
    assert torch.equal(together[stacked], spikes)
    assert 0 < spikes.mean() < 1
    given = {name: together.get(name, torch.tensor(11)) for name in about["end"]["takes"]}
    torch.testing.assert_close(run(tmp_path / "net.end.onnx", given)["output_0"], expected, rtol=1e-5, atol=1e-6)
    assert "total / x.shape[0]" in exported.guide


def test_an_unknown_format_is_refused() -> None:
    with pytest.raises(InvalidInput, match="no format 'tflite'"):
        tracecompile.export(tracecompile.convert(Recurrent(), torch.randn(5, 2, 6)), "tflite")
