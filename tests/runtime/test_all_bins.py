"""Local graphs of all bins at once give what those of single bins give, where rows go by themselves."""

from __future__ import annotations

import copy
from collections.abc import Callable
from typing import Any

import pytest
import torch
from torch import Tensor, nn
from torch.nn import functional as F

import tracecompile
import tracecompile.nn as snn
from tracecompile.runtime.backward.all_bins import JointGraph, local_graph
from tracecompile.runtime.backward.local import LocalGraph

STEPS, FEATURES = 13, 6
MAKER = "tracecompile.runtime.backward.gradients.local_graph"


class Looped(nn.Module):
    """Two layers with a synapse of the test's between them, and a readout; states are the test's as well."""

    def __init__(self, synapse: Callable[..., Tensor], *, lateral: bool = False) -> None:
        super().__init__()
        self.synapse = synapse
        self.fc1, self.fc2 = nn.Linear(5, FEATURES), nn.Linear(FEATURES, FEATURES)
        self.neurons1, self.neurons2 = snn.LIF(leak=0.8), snn.LIF(leak=0.9)
        self.norm, self.out = nn.BatchNorm1d(FEATURES), nn.Linear(FEATURES, 3)
        self.gain, self.lateral = nn.Parameter(torch.rand(FEATURES) + 0.5), lateral

    def forward(self, x: Tensor) -> Tensor:
        """Returns scores [batch, 3] of inputs [steps, batch, 5]."""
        state1, state2, total = None, None, torch.zeros(x.shape[1], 3, dtype=x.dtype)
        before = torch.zeros(x.shape[1], FEATURES, dtype=x.dtype)
        for x_t in x:
            spikes1, state1 = self.neurons1(2 * self.fc1(x_t), state1)
            before, state2 = self.neurons2(self.synapse(self, spikes1, before if self.lateral else spikes1), state2)
            total = total + self.out(before)
        return total / x.shape[0]


JOINT: dict[str, tuple[Callable[..., Tensor], bool]] = {
    "product": (lambda net, s, b: 3 * net.fc2(s), False),
    "product and gain of a parameter": (lambda net, s, b: net.gain * net.fc2(s), False),
    "product of spikes with spikes": (lambda net, s, b: 3 * net.fc2(s) * (1 + b), False),
    "reshaped": (lambda net, s, b: F.linear(s.view(-1, 2, 3).flatten(1), net.fc2.weight) + net.fc2.bias, False),
    "lateral": (lambda net, s, b: 3 * net.fc2(s) + b @ net.fc2.weight, True),
    "lateral, scaled": (lambda net, s, b: net.gain * (3 * net.fc2(s) + b @ net.fc2.weight), True),
}
BY_BIN: dict[str, tuple[Callable[..., Tensor], bool]] = {
    "normalised with known statistics": (lambda net, s, b: net.norm(3 * net.fc2(s)), False),
    "lateral spikes times spikes": (lambda net, s, b: 3 * net.fc2(s) * (1 + b @ net.fc2.weight), True),
    "rows that meet": (lambda net, s, b: 3 * net.fc2(s) - s.mean(0, keepdim=True), False),
}


def found(net: nn.Module, x: Tensor) -> dict[str, Tensor]:
    """Returns the gradients of a loss, by parameter."""
    net.zero_grad()
    (net(x) * torch.tensor([1.0, -2.0, 0.5], dtype=x.dtype)).square().sum().backward()
    return {name: p.grad.clone() for name, p in net.named_parameters() if p.grad is not None}


def both(
    model: nn.Module, bins: int, monkeypatch: pytest.MonkeyPatch, batch: int = 4
) -> tuple[dict[str, Tensor], dict[str, Tensor], list[str], Tensor]:
    """Returns gradients as they are and bin by bin, the layers with joint graphs, and the input."""
    net = tracecompile.convert(model, torch.rand(7, 3, 5, dtype=torch.float64).round(), bins=bins, backend="eager")
    x = torch.rand(STEPS, batch, 5, dtype=torch.float64).round()
    joint: list[str] = []

    def noted(program: Any, layer: Any, *args: Any, **named: Any) -> LocalGraph | JointGraph:
        graph = local_graph(program, layer, *args, **named)
        joint.extend([layer.name] if isinstance(graph, JointGraph) else [])
        return graph

    def by_bin(program: Any, layer: Any, bins: Any, statics: Any, wanted: Any, *, solved: bool) -> LocalGraph:
        return LocalGraph(layer, bins, statics, wanted)

    monkeypatch.setattr(MAKER, noted)
    together = found(net, x)
    monkeypatch.setattr(MAKER, by_bin)
    return together, found(net, x), joint, x


@pytest.mark.parametrize("bins", [2, 5, STEPS])
@pytest.mark.parametrize("kind", JOINT)
def test_bins_at_once_give_what_single_bins_give(kind: str, bins: int, monkeypatch: pytest.MonkeyPatch) -> None:
    """Whatever their widths, in every parameter, with rows of another number than the conversion saw."""
    torch.manual_seed(0)
    synapse, lateral = JOINT[kind]
    model = Looped(synapse, lateral=lateral).double()
    together, alone, joint, x = both(model, bins, monkeypatch)
    assert len(joint) >= 3
    assert together.keys() == alone.keys()
    for name, gradient in alone.items():
        torch.testing.assert_close(together[name], gradient, rtol=1e-9, atol=1e-12, msg=f"{kind}: {name}")
        assert gradient.abs().sum() > 0, name
    if bins == STEPS:
        reference = found(copy.deepcopy(model), x)
        for name, gradient in reference.items():
            torch.testing.assert_close(together[name.removeprefix("model.")], gradient, rtol=1e-9, atol=1e-10)


@pytest.mark.parametrize("kind", BY_BIN)
def test_bins_that_need_it_go_by_themselves(kind: str, monkeypatch: pytest.MonkeyPatch) -> None:
    """One whose derivative changes with its sources in a recurrent block, that mixes the batch, or a norm."""
    torch.manual_seed(0)
    synapse, lateral = BY_BIN[kind]
    model = Looped(synapse, lateral=lateral).double()
    nn.init.uniform_(model.norm.get_buffer("running_mean"), -0.2, 0.2)
    model.norm.eval()
    together, _, joint, x = both(model, STEPS, monkeypatch)
    assert len(joint) == 2, "the first layer and the readout"
    for name, gradient in found(copy.deepcopy(model), x).items():
        torch.testing.assert_close(together[name], gradient, rtol=1e-9, atol=1e-10, msg=f"{kind}: {name}")


def test_hooks_and_modes_of_modules_are_asked_at_every_backward_pass(monkeypatch: pytest.MonkeyPatch) -> None:
    """What was folded when the net was converted is not where a hook has come since."""
    torch.manual_seed(0)
    model = Looped(JOINT["product"][0]).double()
    net = tracecompile.convert(model, torch.rand(7, 3, 5, dtype=torch.float64).round(), bins=4, backend="eager")
    seen: list[int] = []

    def noted(program: Any, layer: Any, *args: Any, **named: Any) -> LocalGraph | JointGraph:
        graph = local_graph(program, layer, *args, **named)
        seen.append(isinstance(graph, JointGraph))
        return graph

    monkeypatch.setattr(MAKER, noted)
    x = torch.rand(STEPS, 4, 5, dtype=torch.float64).round()
    found(net, x)
    assert seen == [True] * 3
    seen.clear()
    with net.get_submodule("out").register_forward_hook(lambda module, given, result: result * 2):
        found(net, x)
    assert 0 < 2 * seen.count(False) == seen.count(True), "that layer alone, in the check of the new capture too"


class Convolved(nn.Module):
    """A convolution, neurons, and a readout of them."""

    def __init__(self) -> None:
        super().__init__()
        self.weights, self.neurons, self.out = nn.Conv2d(1, 4, 3, padding=1), snn.LIF(leak=0.8), nn.Linear(4 * 36, 3)

    def forward(self, x: Tensor) -> Tensor:
        """Returns scores [batch, 3] of inputs [steps, batch, 1, 6, 6]."""
        state, total = None, torch.zeros(x.shape[1], 3, dtype=x.dtype)
        for x_t in x:
            spikes, state = self.neurons(2 * self.weights(x_t), state)
            total = total + self.out(spikes.flatten(1))
        return total / x.shape[0]


def test_convolutions_keep_the_precision_of_single_bins(monkeypatch: pytest.MonkeyPatch) -> None:
    """Over all bins at once torch's gradient of their weights rounds three times as much."""
    torch.manual_seed(0)
    model, made = Convolved(), dict[str, bool]()

    def noted(program: Any, layer: Any, *args: Any, **named: Any) -> LocalGraph | JointGraph:
        graph = local_graph(program, layer, *args, **named)
        made[layer.name] = isinstance(graph, JointGraph)
        return graph

    net = tracecompile.convert(copy.deepcopy(model), torch.rand(7, 3, 1, 6, 6).round(), bins=40, backend="eager")
    monkeypatch.setattr(MAKER, noted)
    x = torch.rand(40, 4, 1, 6, 6).round()
    gradients, expected = found(net, x), found(model, x)
    assert made == {"neurons": False, "out": True}
    for name, gradient in expected.items():
        torch.testing.assert_close(gradients[name], gradient, rtol=1e-4, atol=float(gradient.norm()) * 1e-6)
