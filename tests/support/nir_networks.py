"""Networks that NIR can say, by the kinds of nodes that they become."""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

import torch
from requirements import library
from torch import Tensor, nn

import tracecompile.nn as snn

SPIKE = snn.arctan()


class Loop(nn.Module):
    """Calls a step (of a module, an input, states) over time."""

    def __init__(self, step: Callable[..., Any], states: int, before: Callable[..., Any] | None = None) -> None:
        super().__init__()
        self.a, self.b, self.c = nn.Linear(6, 9), nn.Linear(9, 9), nn.Linear(9, 9)
        self.scale = nn.Parameter(0.5 + torch.rand(9))
        self.step, self.states, self.before = step, states, before

    def forward(self, x: Tensor) -> Tensor:
        if self.before is not None:
            self.before(self)
        states, out = [x.new_zeros(x.shape[1], 9) for _ in range(self.states)], []
        for x_t in x:
            value, states = self.step(self, x_t, states)
            out.append(value)
        return torch.stack(out)


def with_parts(loop: Loop, **parts: nn.Module) -> Loop:
    for name, part in parts.items():
        loop.add_module(name, part)
    return loop


def own_neurons() -> Loop:
    def step(net: Any, x: Tensor, states: Any) -> Any:
        first, last = states
        spikes, first = net.lif(2 * net.a(x), first)
        spikes, last = net.rlif(net.b(spikes), last)
        return spikes, (first, last)

    def start(net: Any, x: Tensor, states: Any) -> Any:
        return step(net, x, [None, None] if isinstance(states, list) else states)

    return with_parts(Loop(start, 2), lif=snn.LIF(9), rlif=snn.RLIF(9))


def by_hand(net: Any, x: Tensor, states: Any) -> Any:
    (v,) = states
    v = 0.9 * v + net.a(x)
    s = SPIKE(v - 1.0)
    return s, [v - s.detach() * 1.0]


def trained_constants(net: Any, x: Tensor, states: Any) -> Any:
    """A decay and a threshold for each neuron, the membrane in units of the threshold."""
    v, w = states
    decay = torch.sigmoid(net.scale)
    v = decay * v + (1 - decay) * net.a(x)
    s = (v / net.scale > 0.6).to(v)
    w = w + net.b(s) - 0.2
    z = SPIKE(w - net.scale)
    return z, [v - 0.6 * s * net.scale, w - z * net.scale]


def synaptic_current(net: Any, x: Tensor, states: Any) -> Any:
    """The current filtered first, in two orders; a reset by half the threshold."""
    i, v, j, w = states
    i = 0.8 * i + net.a(x)
    v = 0.9 * v + i
    s = SPIKE(v - 1.0)
    w = w + 0.2 * (0.1 - w + j)
    z = SPIKE(w - 0.2)
    return z, [i, v - s, 0.7 * j + net.b(s), w - 0.1 * z]


def feedback(net: Any, x: Tensor, states: Any) -> Any:
    """Two layers in a ring, the spikes of two steps before, a skip connection, an input of the step before."""
    v, w, late, later, before = states
    c = net.a(x)
    v = 0.9 * v + c + net.b(later) + before
    s = SPIKE(v - 1.0)
    w = 0.8 * w + net.c(s) - 0.3 * late + 0.4 * c
    z = SPIKE(w - 0.5)
    return z, [v - s, w - 0.5 * z, z, late, c]


def snntorch_neurons() -> Loop:
    snntorch = library("snntorch")

    def step(net: Any, x: Tensor, states: Any) -> Any:
        mem, syn, last = states
        s, mem = net.leaky(net.a(x), mem)
        s, syn, last = net.synaptic(2 * net.b(s.to(x)), syn, last)  # its spikes are float32
        return s.to(x), [mem, syn, last]

    return with_parts(Loop(step, 3), leaky=snntorch.Leaky(0.9), synaptic=snntorch.Synaptic(0.8, 0.9))


def spikingjelly_neurons() -> Loop:
    neuron = library("spikingjelly.activation_based.neuron")
    functional = library("spikingjelly.activation_based.functional")

    def step(net: Any, x: Tensor, states: Any) -> Any:
        return net.last(4 * net.b(net.first(net.a(x)))), states

    first, last = neuron.IFNode(v_reset=None), neuron.LIFNode(tau=2.0, v_reset=None)
    return with_parts(Loop(step, 0, functional.reset_net), first=first, last=last)


CASES: dict[str, tuple[Callable[[], Loop], set[str]]] = {
    "own": (own_neurons, {"LIF", "Affine", "Linear"}),
    "by hand": (lambda: Loop(by_hand, 1), {"LIF", "Affine"}),
    "trained constants": (lambda: Loop(trained_constants, 2), {"LIF", "IF", "Affine"}),
    "synaptic current": (lambda: Loop(synaptic_current, 4), {"CubaLIF", "LI", "LIF", "Delay", "Scale", "Affine"}),
    "feedback": (lambda: Loop(feedback, 5), {"LIF", "Affine", "Scale", "Delay"}),
    "snntorch": (snntorch_neurons, {"LIF", "LI", "Scale", "Affine"}),
    "spikingjelly": (spikingjelly_neurons, {"IF", "LIF", "Affine"}),
}
