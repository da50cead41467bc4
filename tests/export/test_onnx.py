"""ONNX: the step in a loop, with what precedes and follows it, is the network."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

import pytest
import torch
from requirements import library
from torch import Tensor, nn

import tracecompile
import tracecompile.nn as snn
from tracecompile.cli import main
from tracecompile.errors import InvalidInput, SelfCheckFailed, UnsupportedOperation
from tracecompile.exporting.onnx import model as writer

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


class DelayLine(nn.Module):
    """Batch normalisation, a delayed input that a step hands on as it came, a loop over ``unbind``."""

    def __init__(self) -> None:
        super().__init__()
        self.fc, self.norm = nn.Linear(6, 4, bias=False), nn.BatchNorm1d(4)

    def forward(self, x: Tensor) -> Tensor:
        before, v, out = torch.zeros_like(x[0]), 0.0, []
        for x_t in x.unbind(0):
            v = 0.9 * v + self.norm(self.fc(before))
            s = snn.arctan()(v - 0.5)
            v, before = v - 0.5 * s, x_t
            out.append(s)
        return torch.stack(out)


def test_a_normalisation_is_that_of_eval_mode_and_the_net_stays_in_its_own(tmp_path: Path) -> None:
    torch.manual_seed(0)
    net = tracecompile.convert(DelayLine(), 2 * torch.randn(5, 3, 6))
    net(2 * torch.randn(20, 3, 6))  # moves the statistics
    about = tracecompile.export(net, "onnx", tmp_path / "net.onnx").description
    assert net.training
    x = 2 * torch.randn(9, 2, 6)
    states = {state["name"]: torch.full((2, *state["shape"][1:]), state["start"]) for state in about["states"]}
    out = []
    for x_t in x:
        found = run(tmp_path / "net.onnx", {about["inputs"][0]["name"]: x_t, **states})
        states = {state["name"]: found[state["next"]] for state in about["states"]}
        out.append(found[about["outputs"][0]["name"]])
    expected = net.eval()(x)
    assert torch.equal(torch.stack(out), expected)
    assert 0 < expected.mean() < 1
    assert about["end"] is None


class Bessel(nn.Module):
    """An operation that ONNX does not have."""

    def __init__(self) -> None:
        super().__init__()
        self.fc = nn.Linear(6, 4)

    def forward(self, x: Tensor) -> Tensor:
        v, out = 0.0, []
        for x_t in x:
            v = 0.9 * v + self.fc(x_t)
            s = snn.arctan()(v - 1.0)
            v = v - s
            out.append(torch.special.i0(s))
        return torch.stack(out)


def test_what_has_no_form_in_onnx_names_the_line() -> None:
    net = tracecompile.convert(Bessel(), torch.randn(5, 2, 6))
    with pytest.raises(UnsupportedOperation, match="no form in ONNX") as caught:
        tracecompile.export(net, "onnx")
    assert caught.value.where is not None
    assert "special.i0" in caught.value.where.source


def test_a_model_that_computes_something_else_is_noticed(monkeypatch: pytest.MonkeyPatch) -> None:
    plain = writer.write_part

    def other(*given: Any) -> Any:
        model = plain(*given)
        for node in model.graph.node:
            if node.op_type == "Sub":
                node.op_type = "Add"
        return model

    monkeypatch.setattr(writer, "write_part", other)
    with pytest.raises(SelfCheckFailed, match="where torch returns"):
        tracecompile.export(tracecompile.convert(Recurrent(), 2 * torch.randn(5, 2, 6)), "onnx")


def test_the_command_line_exports_a_saved_folder(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    tracecompile.save(tracecompile.convert(Recurrent(), 2 * torch.randn(5, 2, 6)), tmp_path / "net")
    with pytest.raises(SystemExit) as stopped:
        main(["export", str(tmp_path / "net"), "--to", "onnx", "-o", str(tmp_path / "net.onnx"), "--json"])
    assert not stopped.value.code
    assert [Path(file).name for file in json.loads(capsys.readouterr().out)["files"]] == ["net.onnx", "net.end.onnx"]
    with pytest.raises(SystemExit) as stopped:
        main(["export", str(tmp_path), "--to", "onnx", "-o", str(tmp_path / "other.onnx")])
    assert stopped.value.code == 2


class Dropping(Recurrent):
    """Recurrent, with a dropout before its neurons and one behind them."""

    def __init__(self) -> None:
        super().__init__()
        self.drop = nn.Dropout(0.4)

    def forward(self, x: Tensor) -> tuple[Tensor, Tensor]:
        state, total, spikes = None, 0.0, []
        for x_t in x:
            s, state = self.cell(2 * self.fc(self.drop(x_t)), state)
            total = total + self.out(self.drop(s))
            spikes.append(s)
        return total / x.shape[0], torch.stack(spikes)


def test_a_dropout_is_off_and_what_an_earlier_export_left_beside_is_removed(tmp_path: Path) -> None:
    torch.manual_seed(0)
    net = tracecompile.convert(Dropping(), 2 * torch.randn(5, 2, 6))
    tracecompile.export(net, "onnx", tmp_path / "net.onnx")
    exported = tracecompile.export(net, "onnx")
    assert exported.description["random"] == []
    assert not any("random" in note for note in exported.notes)
    (tmp_path / "net.onnx").rename(tmp_path / "net.begin.onnx")  # as from a network that has one
    (tmp_path / "other.begin.onnx").write_text("somebody's")
    again = tracecompile.export(net, "onnx", tmp_path / "net.onnx")
    writer.write_onnx(again, tmp_path / "other.onnx")
    assert {each.name for each in tmp_path.iterdir()} == {
        *(each.name for each in again.files),
        "other.onnx",
        "other.end.onnx",
        "other.begin.onnx",
    }
    assert (tmp_path / "other.begin.onnx").read_text() == "somebody's"
    assert "begin" not in again.others, "the test proves nothing"
