"""NIR: the graph that is written, read back, makes the spikes of the network; what NIR cannot say names the line."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

import pytest
import torch
from requirements import library
from support.nir_networks import CASES, SPIKE, Loop, by_hand, with_parts
from torch import Tensor, nn
from torch.nn import functional as F

import tracecompile
import tracecompile.nn as snn
from tracecompile.cli import main
from tracecompile.errors import ConversionError, InvalidInput
from tracecompile.exporting.nir.check import read_back
from tracecompile.nir.network import load_nir

nir: Any = library("nir")
pytestmark = [pytest.mark.libraries, pytest.mark.filterwarnings("ignore")]


def spikes_of(graph: Any, x: Tensor, dt: float = 1e-4) -> Tensor:
    with torch.no_grad():
        found: Tensor = read_back(graph, dt)(x)
    return found


@pytest.mark.parametrize("name", list(CASES))
def test_the_graph_makes_the_spikes_of_the_network(name: str) -> None:
    make, kinds = CASES[name]
    model = make().double()
    net = tracecompile.convert(model, 2 * torch.randn(5, 2, 6, dtype=torch.float64))
    exported = tracecompile.export(net, "nir")
    assert {type(node).__name__ for node in exported.model.nodes.values()} - {"Input", "Output"} == kinds
    x = 2 * torch.randn(40, 7, 6, dtype=torch.float64)
    expected = model(x)
    assert 0 < expected.mean() < 1
    assert torch.equal(spikes_of(exported.model, x), expected)


class Pooled(nn.Module):
    """Sums over windows, a size that the step reads, a padding by name, factors of channels, an axis less."""

    def __init__(self, axes: int) -> None:
        super().__init__()
        self.conv = nn.Conv2d(2, 4, (3, 1), padding="same") if axes == 2 else nn.Conv1d(2, 4, 3, stride=2, groups=2)
        self.gain, self.out = nn.Parameter(torch.randn(4, *(1,) * axes)), nn.Linear(48 if axes == 2 else 12, 5)

    def forward(self, x: Tensor) -> Tensor:
        v, w, out = 0.0, 0.0, []
        for x_t in x:
            v = 0.7 * v + (self.conv(x_t) * self.gain - 0.1)
            s = SPIKE(v - 0.5)
            v = v - 0.5 * s
            pooled = F.avg_pool2d(s, 2, divisor_override=1) if s.dim() == 4 else s
            w = w + 0.5 * self.out(pooled.view(x_t.shape[0], -1))
            z = SPIKE(w - 1.0)
            w = w - z
            out.append(z)
        return torch.stack(out)


@pytest.mark.parametrize(
    ("axes", "shape", "kinds"),
    [
        (2, (2, 8, 6), ["Affine", "Conv2d", "Flatten", "IF", "Input", "LIF", "Output", "SumPool2d"]),
        (1, (2, 7), ["Affine", "Conv1d", "Flatten", "IF", "Input", "LIF", "Output"]),
    ],
)
def test_convolutions_and_pooling(axes: int, shape: tuple[int, ...], kinds: list[str]) -> None:
    model = Pooled(axes).double()
    exported = tracecompile.export(tracecompile.convert(model, torch.randn(4, 2, *shape, dtype=torch.float64)), "nir")
    assert sorted(type(node).__name__ for node in exported.model.nodes.values()) == kinds
    x = 2 * torch.randn(20, 5, *shape, dtype=torch.float64)
    expected = model(x)
    assert 0 < expected.mean() < 1
    assert torch.equal(spikes_of(exported.model, x), expected)


class Convolutional(nn.Module):
    """Convolution, normalisation, pooling, flattening, a leaky readout whose mean is returned."""

    def __init__(self) -> None:
        super().__init__()
        self.conv, self.norm = nn.Conv2d(2, 3, 3, padding=1, stride=2), nn.BatchNorm2d(3)
        self.pool, self.cell = nn.AvgPool2d(2), snn.LIF(3)
        self.out, self.readout = nn.Linear(12, 4), snn.LI(4)

    def forward(self, x: Tensor) -> Tensor:
        v, state, total = torch.zeros((), dtype=x.dtype), None, 0.0
        for x_t in x:
            v = 0.8 * v + self.norm(self.conv(x_t))
            s = SPIKE(v - 0.5)
            v = v - 0.5 * s
            y, state = self.readout(self.out(self.pool(s).flatten(1)), state)
            total = total + y
        return total / x.shape[0]


@pytest.mark.parametrize("saved", [False, True])
def test_a_convolutional_network_and_the_notes_of_what_it_does_with_its_readout(tmp_path: Path, saved: bool) -> None:
    net = tracecompile.convert(Convolutional(), 2 * torch.randn(5, 3, 2, 8, 8))
    net(2 * torch.randn(9, 3, 2, 8, 8))  # moves the statistics
    x = 2 * torch.randn(12, 4, 2, 8, 8)
    expected = net.eval()(x)
    net.train()
    if saved:
        tracecompile.save(net, tmp_path / "net")
        net = tracecompile.load(tmp_path / "net")
    exported = tracecompile.export(net, "nir", tmp_path / "net.nir", dt=1e-3)
    assert net.training
    assert exported.files == (tmp_path / "net.nir",)
    kinds = [type(node).__name__ for node in exported.model.nodes.values()]
    assert sorted(kinds) == ["Affine", "AvgPool2d", "Conv2d", "Flatten", "Input", "LI", "LIF", "Output"]
    each = load_nir(tmp_path / "net.nir", 1e-3)(x)
    torch.testing.assert_close(each.mean(0), expected, rtol=1e-4, atol=1e-5)
    notes = " ".join(exported.notes)
    assert "adds up the output of all steps" in notes
    assert "total / x.shape[0]" in notes


def run(*arguments: object) -> int:
    with pytest.raises(SystemExit) as stopped:
        main([str(argument) for argument in arguments])
    return int(stopped.value.code or 0)


def test_the_command_line_exports_and_takes_what_it_wrote(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    model = Loop(by_hand, 1)
    tracecompile.save(tracecompile.convert(model, 2 * torch.randn(5, 2, 6)), tmp_path / "net")
    told = ("--to", "nir", "-o", tmp_path / "net.nir", "--dt", "1e-3")
    assert run("export", tmp_path / "net", *told, "--json") == 0
    about = json.loads(capsys.readouterr().out)
    assert about["dt"] == 1e-3
    assert list(about["nodes"].values()) == ["Input", "Affine", "LIF", "Output"]
    assert run("inspect", tmp_path / "net.nir", "--dt", "1e-3", "--input", "6x2x6") == 0
    assert run("export", tmp_path / "net", "--to", "onnx", "-o", tmp_path / "net.onnx", "--dt", "1e-3") == 2
    assert run("export", tmp_path / "net", "--to", "nir", "-o", tmp_path / "other.nir", "--dt", "0") == 2
    assert not (tmp_path / "other.nir").exists()


def test_a_duration_is_for_nir_alone() -> None:
    net = tracecompile.convert(Loop(by_hand, 1), torch.randn(5, 2, 6))
    with pytest.raises(InvalidInput, match="no duration"):
        tracecompile.export(net, "onnx", dt=1e-3)
    with pytest.raises(ConversionError, match="-1 seconds"):
        tracecompile.export(net, "nir", dt=-1)


@pytest.mark.parametrize("place", ["input", "current", "spikes", "output"])
def test_a_dropout_is_off(place: str) -> None:
    """Of the module and of the function, in training: the graph is that of the network without it."""

    def step(net: Any, x: Tensor, states: Any) -> Any:
        def dropped(value: Tensor, here: str) -> Tensor:
            if here != place:
                return value
            return F.dropout(net.drop(value), 0.3, net.training)

        v, w = states
        v = 0.9 * v + dropped(net.a(dropped(2 * x, "input")), "current")
        s = SPIKE(v - 1.0)
        w = 0.8 * w + net.b(dropped(s, "spikes"))
        z = SPIKE(w - 0.5)
        return dropped(z, "output"), [v - s, w - 0.5 * z]

    model = with_parts(Loop(step, 2), drop=nn.Dropout(0.4)).double()
    net = tracecompile.convert(model, torch.randn(5, 2, 6, dtype=torch.float64))
    exported = tracecompile.export(net, "nir")
    assert sum(type(node).__name__ == "LIF" for node in exported.model.nodes.values()) == 2
    assert net.training
    x = 2 * torch.randn(40, 7, 6, dtype=torch.float64)
    expected = model.eval()(x)
    assert 0 < expected.mean() < 1
    assert torch.equal(spikes_of(exported.model, x), expected)
