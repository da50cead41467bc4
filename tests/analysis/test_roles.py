"""What each state of a neuron is said to be, for neurons written in many ways."""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

import pytest
import torch
from torch import Tensor, nn

import tracecompile
from tracecompile import nn as snn

spike = snn.sigmoid(4.0)


class Neurons(nn.Module):
    """One time step: weights, one kind of neuron with its states in attributes, and a leaky readout."""

    def __init__(self, neuron: Callable[[Tensor, Any], Tensor], names: list[str]) -> None:
        super().__init__()
        torch.manual_seed(0)
        self.weights, self.readout = nn.Linear(5, 8), nn.Linear(8, 3)
        self.neuron, self.names = neuron, names
        self.clear()

    def clear(self) -> None:
        for name in (*self.names, "y"):
            setattr(self, name, None)

    def forward(self, x: Tensor) -> Tensor:
        if self.y is None:
            for name in (*self.names, "y"):
                setattr(self, name, x.new_zeros(x.shape[0], 3 if name == "y" else 8))
        self.y = 0.9 * self.y + self.readout(self.neuron(2.5 * self.weights(x), self))
        return self.y


def adaptive_late(current: Tensor, s: Any) -> Tensor:
    """The threshold rises after the spike."""
    s.v = 0.9 * s.v + current
    z = spike(s.v - 0.5 - s.b)
    s.v = s.v - 0.5 * z
    s.b = 0.95 * s.b + 0.2 * z
    return z


def adaptive_early(current: Tensor, s: Any) -> Tensor:
    """The threshold rises by the spikes of the step before, which are handed on."""
    s.b = 0.97 * s.b + 0.03 * s.z
    threshold = 0.5 + 1.6 * s.b
    s.v = 0.9 * s.v + current - threshold * s.z
    s.z = spike((s.v - threshold) / 0.5)
    return s.z


def adaptive_product(current: Tensor, s: Any) -> Tensor:
    """The threshold is multiplied, and the reset waits for the next step."""
    s.a = 0.9 * s.a + s.z.detach()
    s.v = 0.8 * s.v * (1 - s.z.detach()) + current
    s.z = spike(s.v - 0.4 * (1 + s.a))
    return s.z


def adaptive_current(current: Tensor, s: Any) -> Tensor:
    """A current that the membrane and the spikes drive, against the membrane."""
    v = 0.9 * s.v + current - s.w
    z = spike(v - 0.5)
    s.w = 0.9 * s.w + 0.05 * v + 0.2 * z
    s.v = v - 0.5 * z
    return z


def threshold_follows(current: Tensor, s: Any) -> Tensor:
    """The threshold follows the membrane, which nothing resets."""
    s.v = 0.9 * s.v + current
    s.th = 0.95 * s.th + 0.05 * s.v
    return spike(s.v - 0.3 - s.th)


def synaptic(current: Tensor, s: Any) -> Tensor:
    """A synaptic current, and no reset."""
    s.i = 0.7 * s.i + current
    s.v = 0.9 * s.v + s.i
    return spike(s.v - 0.5)


def synaptic_late(current: Tensor, s: Any) -> Tensor:
    """The membrane reads the current of the step before, and is reset hard by a comparison."""
    v = 0.9 * s.v + s.i
    z = spike(v - 0.5)
    s.v = torch.where(v > 0.5, torch.zeros_like(v), v)
    s.i = 0.7 * s.i + current
    return z


def two_synapses(current: Tensor, s: Any) -> Tensor:
    """One that excites and one that inhibits."""
    s.up = 0.7 * s.up + current.relu()
    s.down = 0.7 * s.down + (-current).relu()
    s.v = 0.9 * s.v + s.up - s.down
    z = spike(s.v - 0.5)
    s.v = s.v - 0.5 * z
    return z


def adaptive_synaptic(current: Tensor, s: Any) -> Tensor:
    """All three, and two slow ones."""
    s.i = 0.7 * s.i + current
    s.v = 0.9 * s.v + s.i - s.b
    z = spike(s.v - 0.5 - s.c)
    s.v = s.v * (1 - z)
    s.b, s.c = 0.9 * s.b + 0.1 * z, 0.99 * s.c + 0.1 * z
    return z


def handed_on_scaled(current: Tensor, s: Any) -> Tensor:
    """Spikes are scaled before they are handed on, and again a step later."""
    s.v = 0.9 * s.v + current + 0.2 * s.z - 0.1 * s.w
    s.w = s.z
    z = spike(s.v - 0.5)
    s.z = 0.5 * z
    return z


def echo(current: Tensor, s: Any) -> Tensor:
    """A trace of the neuron's own spikes that drives it on: neither a current nor an adaptation."""
    s.v = 0.9 * s.v + current + 0.3 * s.r
    z = spike(s.v - 0.5)
    s.v, s.r = s.v - 0.5 * z, 0.9 * s.r + 0.1 * z
    return z


def compartments(current: Tensor, s: Any) -> Tensor:
    """Two compartments that lead to each other."""
    s.d = 0.8 * s.d + current + 0.1 * s.v
    s.v = 0.9 * s.v + 0.4 * s.d
    z = spike(s.v - 0.5)
    s.v = s.v - 0.5 * z
    return z


def counted_down(current: Tensor, s: Any) -> Tensor:
    """Who has fired hears nothing for two steps, counted in floats."""
    s.v = 0.9 * s.v + current * (s.left <= 0).to(current.dtype)
    z = spike(s.v - 0.5)
    s.left = torch.where(z > 0, torch.full_like(s.left, 2.0), (s.left - 1.0).clamp(min=0.0))
    s.v = s.v - 0.5 * z
    return z


def counted_up(current: Tensor, s: Any) -> Tensor:
    """The steps since the last spike, of which more than three are asked for."""
    s.v = torch.where(s.since > 3, 0.9 * s.v + current, 0.9 * s.v)
    z = spike(s.v - 0.5)
    s.since = (s.since + 1.0) * (1.0 - z.detach())
    s.v = s.v - 0.5 * z
    return z


def gated_by_a_trace(current: Tensor, s: Any) -> Tensor:
    """A trace of the neuron's own spikes that closes a gate, and counts nothing."""
    s.v = 0.9 * s.v + current * (s.r < 0.5).to(current.dtype)
    z = spike(s.v - 0.5)
    s.v, s.r = s.v - 0.5 * z, 0.8 * s.r + z.detach()
    return z


def either_way(current: Tensor, s: Any) -> Tensor:
    """A trace of spikes that slows some neurons down and drives the others on."""
    sides = torch.tensor([1.0, -1.0] * 4)
    s.v = 0.9 * s.v + current - sides * s.w
    z = spike(s.v - 0.5)
    s.v, s.w = s.v - 0.5 * z, 0.9 * s.w + 0.1 * z
    return z


KNOWN: dict[Callable[[Tensor, Any], Tensor], dict[str, str]] = {
    adaptive_late: {"v": "membrane", "b": "adaptive threshold"},
    adaptive_early: {"b": "adaptive threshold", "v": "membrane", "z": "spikes"},
    adaptive_product: {"a": "adaptive threshold", "v": "membrane", "z": "spikes"},
    adaptive_current: {"w": "adaptation", "v": "membrane"},
    threshold_follows: {"th": "adaptive threshold", "v": "membrane"},
    synaptic: {"i": "synaptic current", "v": "membrane"},
    synaptic_late: {"i": "synaptic current", "v": "membrane"},
    two_synapses: {"up": "synaptic current", "down": "synaptic current", "v": "membrane"},
    adaptive_synaptic: {"b": "adaptation", "c": "adaptive threshold", "i": "synaptic current", "v": "membrane"},
    echo: {"v": "membrane", "r": "state"},
    handed_on_scaled: {"v": "membrane", "z": "spikes", "w": "spikes"},
    counted_down: {"left": "refractory counter", "v": "membrane"},
    counted_up: {"since": "refractory counter", "v": "membrane"},
    gated_by_a_trace: {"r": "state", "v": "membrane"},
    either_way: {"v": "membrane", "w": "state"},
    compartments: {"d": "membrane", "v": "membrane"},
}


@pytest.mark.parametrize("neuron", KNOWN, ids=lambda neuron: neuron.__name__)
@pytest.mark.parametrize("turned", [False, True], ids=["", "other order"])
def test_every_state_has_its_part(neuron: Callable[[Tensor, Any], Tensor], turned: bool) -> None:
    known = KNOWN[neuron]
    model = Neurons(neuron, list(reversed(known) if turned else known))
    net = tracecompile.convert(model, (torch.rand(2, 5) < 0.5).float(), backend="eager")
    spiking, readout = net.program.layers
    names = {carry.placeholder: carry.name for carry in net.program.carries}
    assert {names[s]: kind for s, kind in zip(spiking.states, spiking.state_kinds, strict=True)} == known
    assert (spiking.kind, readout.kind, readout.state_kinds) == ("spiking", "readout", ("membrane",))


def test_a_current_that_is_the_same_at_every_step_drives_a_membrane() -> None:
    class Static(nn.Module):
        def __init__(self) -> None:
            super().__init__()
            self.weights, self.readout = nn.Linear(5, 8), nn.Linear(8, 3)

        def forward(self, image: Tensor) -> Tensor:
            v = b = torch.zeros(image.shape[0], 8)
            current, total = self.weights(image), 0.0
            for _ in range(6):
                v = 0.9 * v + current
                z = spike(v - 0.5 - b)
                v, b = v - 0.5 * z, 0.9 * b + 0.3 * z
                total = total + self.readout(z)
            return total

    layer = tracecompile.convert(Static(), torch.rand(2, 5), backend="eager").program.layers[0]
    assert sorted(layer.state_kinds) == ["adaptive threshold", "membrane"]


def test_the_largest_value_of_a_readout_is_no_membrane() -> None:
    class Maximum(nn.Module):
        def __init__(self) -> None:
            super().__init__()
            self.weights, self.readout = nn.Linear(5, 8), nn.Linear(8, 3)

        def forward(self, x: Tensor) -> Tensor:
            v, y = x.new_zeros(x.shape[1], 8), x.new_zeros(x.shape[1], 3)
            i, most = x.new_zeros(x.shape[1], 3), x.new_zeros(x.shape[1], 3)
            for x_t in x:
                v = 0.9 * v + self.weights(x_t)
                z = spike(v - 0.5)
                v = v - 0.5 * z
                i = 0.7 * i + self.readout(z)
                y = 0.9 * y + i
                most = torch.maximum(most, y)
            return most

    report = tracecompile.convert(Maximum(), torch.rand(6, 2, 5), backend="eager").report
    assert set(report.layers[1].states) == {"i (synaptic current)", "y (membrane)", "most"}


def test_a_layer_is_called_after_its_membrane_and_spikes_are_no_state_of_the_report() -> None:
    class Adaptive(nn.Module):
        def __init__(self) -> None:
            super().__init__()
            self.weights, self.readout = nn.Linear(5, 8), nn.Linear(8, 3)

        def forward(self, x: Tensor) -> Tensor:
            b = v = z = x.new_zeros(x.shape[1], 8)
            total = 0.0
            for x_t in x:
                b = 0.9 * b + 0.1 * z
                v = 0.9 * v + self.weights(x_t) - z * b
                z = spike(v - 0.4 - b)
                total = total + self.readout(z)
            return total

    report = tracecompile.convert(Adaptive(), torch.rand(6, 2, 5), backend="eager").report
    spiking, readout = report.layers
    assert (spiking.name, set(spiking.states)) == ("v", {"v (membrane)", "b (adaptive threshold)"})
    assert spiking.recurrence == f"{spiking.outputs[0]} 1 step ago"
    assert (readout.name, readout.kind, readout.states) == ("readout", "readout", ())
