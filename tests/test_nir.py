"""NIR graphs on the command line and in Python: what each node computes, recurrent edges, refusals by name."""

from __future__ import annotations

import json
from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from models import assert_gradients_close, gradients, weighted_loss
from requirements import library
from torch import Tensor

import tracecompile
from tracecompile.cli import main
from tracecompile.errors import UnsupportedOperation
from tracecompile.nir.network import NIRNetwork, load_nir, network_of
from tracecompile.nir.order import delayed_edges, ordered

nir: Any = library("nir")
pytestmark = pytest.mark.libraries
DT = 1e-4


def array(*shape: int, value: float = 1.0) -> np.ndarray:
    return np.full(shape, value)


def lif(size: int, tau: float = 8e-4, **options: Any) -> Any:
    return nir.LIF(
        tau=array(size, value=tau), r=array(size, value=6.0), v_leak=array(size, value=0.1), v_threshold=array(size),
        **options,
    )  # fmt: skip


def affine(inputs: int, outputs: int, seed: int = 0) -> Any:
    generator = np.random.default_rng(seed)
    return nir.Affine(weight=generator.normal(size=(outputs, inputs)), bias=0.2 * generator.normal(size=outputs))


def spikes(steps: int, batch: int, *shape: int, dtype: torch.dtype = torch.float32) -> Tensor:
    generator = torch.Generator().manual_seed(3)
    return (torch.rand(steps, batch, *shape, generator=generator) < 0.4).to(dtype)


def feed_forward() -> Any:
    cuba = nir.CubaLIF(
        tau_syn=array(8, value=4e-4), tau_mem=array(8, value=1e-3), r=array(8, value=4.0), v_leak=array(8, value=0.0),
        v_threshold=array(8), w_in=array(8, value=2.0),
    )  # fmt: skip
    readout = nir.LI(tau=array(3, value=1e-3), r=array(3, value=10.0), v_leak=array(3, value=0.0))
    return nir.NIRGraph.from_list(affine(5, 8), cuba, affine(8, 6, 1), lif(6), affine(6, 3, 2), readout)


def recurrent() -> Any:
    nodes = {
        "input": nir.Input(np.array([5])), "fc": affine(5, 6), "lif": lif(6),
        "w_rec": nir.Linear(weight=0.4 * np.random.default_rng(7).normal(size=(6, 6))),
        "out": affine(6, 3, 1), "output": nir.Output(np.array([3])),
    }  # fmt: skip
    edges = [
        ("input", "fc"), ("fc", "lif"), ("lif", "w_rec"), ("w_rec", "lif"), ("lif", "out"), ("out", "output"),
    ]  # fmt: skip
    return nir.NIRGraph(nodes, edges)


def with_subgraph() -> Any:
    inner = nir.NIRGraph(
        {"input": nir.Input(np.array([6])), "lif": lif(6), "back": nir.Linear(weight=0.3 * np.eye(6)),
         "output": nir.Output(np.array([6]))},
        [("input", "lif"), ("lif", "back"), ("back", "lif"), ("lif", "output")],
    )  # fmt: skip
    nodes = {
        "input": nir.Input(np.array([5])), "fc": affine(5, 6), "rec": inner, "out": affine(6, 3, 1),
        "output": nir.Output(np.array([3])),
    }  # fmt: skip
    return nir.NIRGraph(nodes, [("input", "fc"), ("fc", "rec"), ("rec", "out"), ("out", "output")])


def convolutional() -> Any:
    generator = np.random.default_rng(0)

    def conv(channels: int, outputs: int, size: int) -> Any:
        return nir.Conv2d(
            input_shape=(size, size), weight=0.5 * generator.normal(size=(outputs, channels, 3, 3)), stride=1,
            padding=1, dilation=1, groups=1, bias=np.zeros(outputs),
        )  # fmt: skip

    def fires(*shape: int) -> Any:
        return nir.IF(r=array(*shape, value=1 / DT), v_threshold=array(*shape))

    pair = np.array([2, 2])
    none = np.array([0, 0])
    return nir.NIRGraph.from_list(
        nir.Input(np.array([2, 8, 8])), conv(2, 3, 8), fires(3, 8, 8), nir.SumPool2d(pair, pair, none), conv(3, 4, 4),
        fires(4, 4, 4), nir.AvgPool2d(pair, pair, none), nir.Flatten({"input": np.array([4, 2, 2])}, 0, -1),
        affine(16, 3), nir.I(r=array(3, value=1000.0)), nir.Output(np.array([3])),
    )  # fmt: skip


def with_delay() -> Any:
    nodes = {
        "input": nir.Input(np.array([5])), "fc": affine(5, 6), "lif": lif(6), "late": nir.Delay(array(6, value=3 * DT)),
        "scale": nir.Scale(array(6, value=0.5)), "sign": nir.Threshold(array(6, value=0.2)), "out": affine(6, 3, 1),
        "output": nir.Output(np.array([3])),
    }  # fmt: skip
    edges = [
        ("input", "fc"), ("fc", "lif"), ("lif", "late"), ("late", "scale"), ("scale", "sign"), ("sign", "out"),
        ("lif", "out"), ("out", "output"),
    ]  # fmt: skip
    return nir.NIRGraph(nodes, edges)


def one_dimensional() -> Any:
    weight = 0.5 * np.random.default_rng(0).normal(size=(3, 2, 3))
    conv = nir.Conv1d(input_shape=None, weight=weight, stride=1, padding="same", dilation=1, groups=1, bias=np.zeros(3))
    return nir.NIRGraph.from_list(
        nir.Input(np.array([2, 8])), conv, nir.IF(r=array(3, 8, value=1 / DT), v_threshold=array(3, 8)),
        nir.Flatten({"input": np.array([3, 8])}, 0, -1), affine(24, 3), nir.Output(np.array([3])),
    )  # fmt: skip


GRAPHS: dict[str, tuple[Callable[[], Any], tuple[int, ...]]] = {
    "feed-forward": (feed_forward, (5,)),
    "recurrent": (recurrent, (5,)),
    "subgraph": (with_subgraph, (5,)),
    "convolutional": (convolutional, (2, 8, 8)),
    "one-dimensional": (one_dimensional, (2, 8)),
    "delay, scale, threshold": (with_delay, (5,)),
}


@pytest.mark.parametrize("name", GRAPHS)
def test_a_converted_graph_is_the_graph(name: str, tmp_path: Path) -> None:
    build, shape = GRAPHS[name]
    if name == "one-dimensional":  # nir 1.0.4 can make such a node only in a way that it cannot write
        model, reference = (network_of(build()).double() for _ in range(2))
    else:
        nir.write(tmp_path / "graph.nir", build())
        model, reference = (load_nir(tmp_path / "graph.nir").double() for _ in range(2))
    x = spikes(7, 3, *shape, dtype=torch.float64)
    net = tracecompile.convert(model, x, bins=7)
    expected, found = reference(x), net(x)
    assert torch.equal(found, expected)
    assert bool(expected.any())
    measured = gradients(model, weighted_loss([found]))
    assert_gradients_close(measured, gradients(reference, weighted_loss([expected])), rtol=1e-9)


def test_the_equations_of_a_lif() -> None:
    """Stepped by hand: the membrane with its leak to v_leak, the strict threshold, the subtraction."""
    node = lif(1)
    net = network_of(nir.NIRGraph.from_list(node), DT)
    x = torch.tensor([0.4, 1.5, 3.0, 0.0, 2.0]).reshape(5, 1, 1)
    v, expected = 0.0, []
    for current in x.flatten().tolist():
        v = v + DT / 8e-4 * (0.1 - v + 6.0 * current)
        expected.append(float(v > 1.0))
        v -= expected[-1]
    assert net(x).flatten().tolist() == expected
    assert 0 < sum(expected) < 5


def test_a_current_is_integrated_before_the_membrane() -> None:
    node = nir.CubaLIF(
        tau_syn=array(1, value=2e-4), tau_mem=array(1, value=5e-4), r=array(1, value=3.0), v_leak=array(1, value=0.0),
        v_threshold=array(1), w_in=array(1, value=1.5),
    )  # fmt: skip
    net = network_of(nir.NIRGraph.from_list(node), DT)
    x = torch.tensor([2.0, 1.0, 0.0, 0.0, 3.0]).reshape(5, 1, 1)
    i, v, expected = 0.0, 0.0, []
    for current in x.flatten().tolist():
        i = i + 0.5 * (1.5 * current - i)
        v = v + 0.2 * (3.0 * i - v)
        expected.append(float(v > 1.0))
        v -= expected[-1]
    assert net(x).flatten().tolist() == expected
    assert 0 < sum(expected) < 5


def test_a_threshold_of_its_own_reset() -> None:
    """NIR from 1.0.6 on says where a membrane is reset to."""
    node = lif(1)
    node.v_reset = array(1, value=-0.5)
    unit = network_of(nir.NIRGraph.from_list(node), DT).lif
    spike, (v,) = unit(torch.full((1, 1), 9.0), (torch.zeros(1, 1),))
    assert spike.item() == 1
    assert v.item() == pytest.approx(-0.5)


def test_a_recurrent_weight_reads_the_spikes_of_the_step_before() -> None:
    net = network_of(recurrent(), DT)
    assert net.late == {("lif", "w_rec")}
    x = spikes(6, 2, 5)
    fc, out, w_rec, neuron = net.fc, net.out, net.w_rec, net.lif
    z, state, expected = torch.zeros(2, 6), (torch.zeros(2, 6),), []
    for x_t in x:
        z, state = neuron(fc(x_t) + w_rec(z), state)
        expected.append(out(z))
    assert torch.equal(net(x), torch.stack(expected))


def test_a_delay_hands_on_what_came_before() -> None:
    net = network_of(nir.NIRGraph.from_list(nir.Delay(array(2, value=2 * DT))), DT)
    x = torch.arange(10.0).reshape(5, 1, 2)
    assert torch.equal(net(x), torch.cat([torch.zeros(2, 1, 2), x[:3]]))


def test_feedback_over_two_layers_delays_one_edge() -> None:
    nodes = ["input", "fc1", "lif1", "fc2", "lif2", "back", "output"]
    edges = [
        ("input", "fc1"), ("fc1", "lif1"), ("lif1", "fc2"), ("fc2", "lif2"), ("lif2", "back"), ("back", "lif1"),
        ("lif2", "output"),
    ]  # fmt: skip
    late = delayed_edges(nodes, edges, {"lif1", "lif2"}, set())
    assert late == {("lif2", "back")}
    assert ordered(nodes, [edge for edge in edges if edge not in late]).index("back") < 6


def test_a_cycle_without_a_neuron_is_refused() -> None:
    graph = nir.NIRGraph(
        {"input": nir.Input(np.array([5])), "a": affine(5, 5), "b": affine(5, 5), "output": nir.Output(np.array([5]))},
        [("input", "a"), ("a", "b"), ("b", "a"), ("b", "output")],
    )
    with pytest.raises(UnsupportedOperation, match=r"a, b .*cycle without a neuron"):
        network_of(graph)


class Sigmoid:
    """A node of a kind that nobody knows."""

    input_type = output_type = None


def test_an_unknown_node_is_refused_by_name() -> None:
    graph = feed_forward()
    graph.nodes["squash"] = Sigmoid()
    with pytest.raises(UnsupportedOperation, match="node squash of the NIR graph is a Sigmoid") as caught:
        network_of(graph)
    assert "CubaLIF" in caught.value.advice


def test_weights_are_trained_and_named_after_the_nodes() -> None:
    net = network_of(recurrent(), DT)
    assert {name for name, _ in net.named_parameters()} == {
        "fc.weight", "fc.bias", "w_rec.weight", "out.weight", "out.bias",
    }  # fmt: skip
    assert {"lif.leak", "lif.threshold"} <= set(net.state_dict())
    assert isinstance(net, NIRNetwork)


def run(capsys: pytest.CaptureFixture[str], *arguments: object) -> tuple[int, str, str]:
    with pytest.raises(SystemExit) as stopped:
        main([str(argument) for argument in arguments])
    captured = capsys.readouterr()
    return int(stopped.value.code or 0), captured.out, captured.err


def test_the_command_line_converts_a_graph(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    nir.write(tmp_path / "graph.nir", recurrent())
    code, out, _ = run(capsys, "convert", tmp_path / "graph.nir", "-o", tmp_path / "net", "--json")
    assert code == 0
    layers = json.loads(out)["report"]["layers"]
    assert any(layer["name"] == "lif" and layer["kind"] == "spiking" for layer in layers)
    x = spikes(9, 2, 5)
    net = tracecompile.load(tmp_path / "net")
    assert torch.equal(net(x), load_nir(tmp_path / "graph.nir")(x))


def test_the_time_step_is_an_option(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    nir.write(tmp_path / "graph.nir", recurrent())
    run(capsys, "convert", tmp_path / "graph.nir", "-o", tmp_path / "net", "--dt", "2e-4", "--input", "6x2x5")
    x = spikes(9, 2, 5)
    net = tracecompile.load(tmp_path / "net")
    assert torch.equal(net(x), load_nir(tmp_path / "graph.nir", 2e-4)(x))
    assert not torch.equal(net(x), load_nir(tmp_path / "graph.nir")(x))


def test_a_refused_graph_ends_with_one(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    nir.write(tmp_path / "graph.nir", nir.NIRGraph.from_list(nir.Delay(np.array([1e-4, 2e-4]))))
    code, _, err = run(capsys, "convert", tmp_path / "graph.nir", "-o", tmp_path / "net")
    assert code == 1
    assert "delays of 1, 2 steps" in err


@pytest.mark.parametrize("dt", ["0", "-1"])
def test_a_time_step_is_positive(tmp_path: Path, capsys: pytest.CaptureFixture[str], dt: str) -> None:
    nir.write(tmp_path / "graph.nir", recurrent())
    code, _, err = run(capsys, "convert", tmp_path / "graph.nir", "-o", tmp_path / "net", f"--dt={dt}")
    assert (code, "--dt" in err) == (2, True)


def test_a_file_that_is_no_graph_is_wrong_usage(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    (tmp_path / "graph.nir").write_text("nothing")
    code, _, err = run(capsys, "convert", tmp_path / "graph.nir", "-o", tmp_path / "net")
    assert code == 2
    assert "graph.nir" in err
    code, _, err = run(capsys, "convert", tmp_path / "missing.nir", "-o", tmp_path / "net")
    assert (code, "There is no file" in err) == (2, True)
