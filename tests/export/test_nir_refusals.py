"""NIR: what it cannot say names the line; a graph that computes something else is noticed."""

from __future__ import annotations

from typing import Any

import pytest
import torch
from requirements import library
from support.nir_networks import SPIKE, Loop, by_hand, with_parts
from torch import Tensor

import tracecompile
from tracecompile.errors import SelfCheckFailed, UnsupportedOperation
from tracecompile.exporting.nir import model as writer

nir: Any = library("nir")
pytestmark = [pytest.mark.libraries, pytest.mark.filterwarnings("ignore")]


def resets_to_zero(net: Any, x: Tensor, states: Any) -> Any:
    (v,) = states
    v = 0.9 * v + net.a(x)
    s = SPIKE(v - 1.0)
    return s, [v * (1 - s)]


def returns_a_membrane(net: Any, x: Tensor, states: Any) -> Any:
    (v,) = states
    v = 0.9 * v + net.a(x)
    kept = v - SPIKE(v - 1.0)
    return kept, [kept]


def adapts(net: Any, x: Tensor, states: Any) -> Any:
    v, b = states
    v = 0.9 * v + net.a(x)
    s = SPIKE(v - 1.0 - b)
    return s, [v - s, 0.9 * b + 0.1 * s]


def takes_the_largest(net: Any, x: Tensor, states: Any) -> Any:
    (v,) = states
    v = 0.9 * v + torch.softmax(net.a(x), 1)
    s = SPIKE(v - 1.0)
    return s, [v - s]


def squashes(net: Any, x: Tensor, states: Any) -> Any:
    (v,) = states
    v = torch.tanh(0.9 * v + net.a(x))
    s = SPIKE(v - 0.5)
    return s, [v - s]


def puts_together(net: Any, x: Tensor, states: Any) -> Any:
    (v,) = states
    v = 0.9 * v + net.a(x)
    s = SPIKE(v - 1.0)
    return torch.cat([s, net.b(s)], 1), [v - s]


@pytest.mark.parametrize(
    ("step", "states", "words", "line"),
    [
        (resets_to_zero, 1, "sets a state to a value", "v * (1 - s)"),
        (returns_a_membrane, 1, "no output", "kept = v - "),
        (adapts, 2, "it has the states", "0.9 * b"),
        (takes_the_largest, 1, "no node for softmax", "torch.softmax"),
        (puts_together, 1, "cat of several values", "torch.cat"),
        (squashes, 1, "computes tanh", "torch.tanh"),
    ],
)
def test_what_nir_cannot_say_names_the_line(step: Any, states: int, words: str, line: str) -> None:
    net = tracecompile.convert(Loop(step, states), torch.randn(5, 2, 6))
    with pytest.raises(UnsupportedOperation, match=words) as caught:
        tracecompile.export(net, "nir")
    assert caught.value.where is not None
    assert line in caught.value.where.source
    assert "onnx" in caught.value.advice


def test_a_library_neuron_that_resets_to_zero_is_refused_at_the_users_line() -> None:
    neuron = library("spikingjelly.activation_based.neuron")
    functional = library("spikingjelly.activation_based.functional")

    def step(net: Any, x: Tensor, states: Any) -> Any:
        return net.first(net.a(x)), states

    net = tracecompile.convert(
        with_parts(Loop(step, 0, functional.reset_net), first=neuron.IFNode()), torch.randn(5, 2, 6)
    )
    with pytest.raises(UnsupportedOperation, match="sets the membrane to a value") as caught:
        tracecompile.export(net, "nir")
    assert caught.value.where is not None
    assert "net.first(net.a(x))" in caught.value.where.source
    assert "v_reset=None" in caught.value.advice


def test_a_graph_that_computes_something_else_is_noticed(monkeypatch: pytest.MonkeyPatch) -> None:
    net = tracecompile.convert(Loop(by_hand, 1), 2 * torch.randn(5, 2, 6))
    plain = writer.read_back

    def other(graph: Any, dt: float) -> Any:
        for node in graph.nodes.values():
            if isinstance(node, nir.LIF):
                node.tau = node.tau * 1.01
        return plain(graph, dt)

    monkeypatch.setattr(writer, "read_back", other)
    with pytest.raises(SelfCheckFailed, match="another spike"):
        tracecompile.export(net, "nir")


class AtThreshold(torch.autograd.Function):
    """A spike at zero and above."""

    @staticmethod
    def forward(ctx: Any, x: Tensor) -> Tensor:
        return (x >= 0).to(x)

    @staticmethod
    def backward(ctx: Any, *grads: Tensor) -> Tensor:
        return grads[0]


def at_threshold(net: Any, x: Tensor, states: Any) -> Any:
    v, w = states
    v = 0.9 * v + net.a(x)
    s = SPIKE(v - 1.0)
    w = w + net.b(s)
    z: Tensor = AtThreshold.apply(w - 1.0)
    return z, [v - s, w - z]


def test_a_spike_right_at_the_threshold_is_another_one_in_nir() -> None:
    model = Loop(at_threshold, 2)
    with torch.no_grad():
        model.b.weight.copy_(torch.randint(0, 3, (9, 9)) * 0.5)
        model.b.bias.zero_()
    net = tracecompile.convert(model, 2 * torch.randn(5, 2, 6))
    with pytest.raises(SelfCheckFailed, match="above the threshold and not at it"):
        tracecompile.export(net, "nir")
