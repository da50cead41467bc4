"""The nodes of a NIR graph as modules.

NIR states its neurons as differential equations. They are stepped with Euler's method in steps of ``dt`` seconds, the
membrane after the current that it integrates, the reset after the spike; this is what snnTorch, SpikingJelly and Norse
do with the graphs that they exchange (their dt is 1e-4). A unit takes its input and its state and returns its output
and its next state; stateless nodes are ordinary layers.
"""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

import numpy as np
import torch
from torch import Tensor, nn
from torch.nn import functional as F

from tracecompile.errors import InvalidInput, UnsupportedOperation
from tracecompile.nir.layers import convolution, flatten, linear, pair, tensor
from tracecompile.nn import arctan

State = tuple[Tensor, ...]


class Unit(nn.Module):
    """A node with a state.

    Attributes:
        shape: Of one sample of its output, () where the graph does not say.
        states: Number of its states, which start as zeros.
    """

    states = 1

    def __init__(self, shape: tuple[int, ...]) -> None:
        super().__init__()
        self.shape = shape

    def constant(self, name: str, value: Any) -> None:
        """Keeps one of the node's arrays as a buffer."""
        self.register_buffer(name, torch.as_tensor(np.asarray(value), dtype=torch.get_default_dtype()))


class Integrator(Unit):
    """LI: ``v <- v + dt / tau (v_leak - v + r i)``; I: ``v <- v + dt r i``. The output is the membrane."""

    leak: Tensor
    gain: Tensor
    rest: Tensor

    def __init__(self, node: Any, dt: float) -> None:
        super().__init__(np.shape(node.r))
        tau = getattr(node, "tau", None)
        self.constant("leak", 0.0 if tau is None else dt / np.asarray(tau))
        self.constant("gain", dt * np.asarray(node.r) if tau is None else dt / np.asarray(tau) * node.r)
        self.constant("rest", getattr(node, "v_leak", 0.0))

    def integrated(self, current: Tensor, v: Tensor) -> Tensor:
        """Returns the membrane after one step, before any reset."""
        return v + self.leak * (self.rest - v) + self.gain * current

    def forward(self, current: Tensor, state: State) -> tuple[Tensor, State]:
        """Returns the membrane, as output and as state."""
        v = self.integrated(current, state[0])
        return v, (v,)


class Firing(Integrator):
    """LIF and IF: as ``Integrator``, with a spike where v > v_threshold.

    The reset subtracts the threshold, or sets v to v_reset where the node has one (NIR from 1.0.6 on).
    """

    threshold: Tensor
    reset: Tensor

    def __init__(self, node: Any, dt: float) -> None:
        super().__init__(node, dt)
        self.fires(node)

    def fires(self, node: Any) -> None:
        """Keeps what the spike and the reset need."""
        self.spike = arctan()
        self.constant("threshold", node.v_threshold)
        self.sets = getattr(node, "v_reset", None) is not None
        if self.sets:
            self.constant("reset", node.v_reset)

    def after_spike(self, v: Tensor) -> tuple[Tensor, Tensor]:
        """Returns the spikes and the membrane after the reset."""
        spikes = self.spike(v - self.threshold)
        if self.sets:
            return spikes, v + spikes * (self.reset - v)
        return spikes, v - spikes * self.threshold

    def forward(self, current: Tensor, state: State) -> tuple[Tensor, State]:
        """Returns the spikes and the membrane."""
        spikes, v = self.after_spike(self.integrated(current, state[0]))
        return spikes, (v,)


class CurrentFiring(Firing):
    """CubaLIF: ``i <- i + dt / tau_syn (w_in s - i)``, then as ``Firing`` with tau_mem."""

    states = 2
    decay: Tensor
    weight: Tensor

    def __init__(self, node: Any, dt: float) -> None:
        Unit.__init__(self, np.shape(node.v_threshold))
        self.constant("leak", dt / np.asarray(node.tau_mem))
        self.constant("gain", dt / np.asarray(node.tau_mem) * node.r)
        self.constant("rest", node.v_leak)
        self.constant("decay", dt / np.asarray(node.tau_syn))
        self.constant("weight", dt / np.asarray(node.tau_syn) * node.w_in)
        self.fires(node)

    def forward(self, current: Tensor, state: State) -> tuple[Tensor, State]:
        """Returns the spikes, and the synaptic current with the membrane."""
        i, v = state
        i = i - self.decay * i + self.weight * current
        spikes, v = self.after_spike(self.integrated(i, v))
        return spikes, (i, v)


class Delayed(Unit):
    """Delay: hands on what it was given a whole number of steps ago, zeros at first."""

    def __init__(self, node: Any, dt: float) -> None:
        super().__init__(np.shape(node.delay))
        steps = np.unique(np.rint(np.asarray(node.delay) / dt).astype(int))
        if len(steps) != 1 or steps[0] < 1:
            raise InvalidInput(
                f"A Delay node has delays of {', '.join(map(str, steps))} steps.",
                "All neurons of a Delay need one delay, of at least one step: choose another --dt, or split the node.",
            )
        self.states = int(steps[0])

    def forward(self, value: Tensor, state: State) -> tuple[Tensor, State]:
        """Returns the oldest value, and the others with the new one."""
        return state[0], (*state[1:], value)


class Scaled(nn.Module):
    """Scale: a product with a number per neuron, which is trained."""

    def __init__(self, node: Any) -> None:
        super().__init__()
        self.scale = nn.Parameter(tensor(node.scale))

    def forward(self, value: Tensor) -> Tensor:
        """Multiplies."""
        return value * self.scale


class Thresholded(nn.Module):
    """Threshold: a spike where the input is above a number."""

    threshold: Tensor

    def __init__(self, node: Any) -> None:
        super().__init__()
        self.register_buffer("threshold", tensor(node.threshold))
        self.spike = arctan()

    def forward(self, value: Tensor) -> Tensor:
        """Compares."""
        spikes: Tensor = self.spike(value - self.threshold)
        return spikes


class SumPool(nn.Module):
    """SumPool2d."""

    def __init__(self, node: Any) -> None:
        super().__init__()
        self.window = tuple(pair(value) for value in (node.kernel_size, node.stride, node.padding))

    def forward(self, value: Tensor) -> Tensor:
        """Adds up each window."""
        kernel, stride, padding = self.window
        return F.avg_pool2d(value, kernel, stride, padding, divisor_override=1)


STATELESS: dict[str, Callable[[Any], nn.Module]] = {
    "Linear": linear,
    "Affine": linear,
    "Conv1d": convolution(nn.Conv1d, 1),
    "Conv2d": convolution(nn.Conv2d, 2),
    "Flatten": flatten,
    "SumPool2d": SumPool,
    "AvgPool2d": lambda node: nn.AvgPool2d(pair(node.kernel_size), pair(node.stride), pair(node.padding)),
    "Scale": Scaled,
    "Threshold": Thresholded,
}
STATEFUL: dict[str, Callable[[Any, float], Unit]] = {
    "I": Integrator,
    "LI": Integrator,
    "IF": Firing,
    "LIF": Firing,
    "CubaLIF": CurrentFiring,
    "Delay": Delayed,
}


def make_unit(name: str, node: Any, dt: float) -> nn.Module:
    """Returns the module of one node.

    Raises:
        UnsupportedOperation: There is none for nodes of this kind.
    """
    kind = type(node).__name__
    if kind in STATEFUL:
        return STATEFUL[kind](node, dt)
    if kind in STATELESS:
        return STATELESS[kind](node)
    raise UnsupportedOperation(
        f"The node {name} of the NIR graph is a {kind}, which has no module here.",
        f"The nodes that have one are: {', '.join([*STATEFUL, *STATELESS])}.",
    )
