"""The networks of the benchmark, written as a user would write them: a step, and a loop over time around it."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass
from typing import Any, ClassVar

import torch
from torch import Tensor, nn

import tracecompile.nn as snn

LEAK = 0.9
SLOPE = 25.0
SURROGATE = snn.fast_sigmoid(SLOPE)
"""With a wider slope, backpropagation through time explodes in the recurrent network, and no cosine means anything."""
CLASSES = 10
GAIN = 2.0
"""Factor on PyTorch's initial weights, with which spikes reach the last layer and most neurons do not saturate."""

States = tuple[Any, ...]


class Looped(nn.Module):
    """A network that is a loop over time; subclasses give the step. Scores are averaged over time.

    Attributes:
        order: The names of its modules in the order in which a step runs them, one after another.
    """

    order: ClassVar[tuple[str, ...]]

    def step(self, x: Tensor, states: States) -> tuple[Tensor, States]:
        """Returns the scores [batch, classes] of one time step and the next states."""
        raise NotImplementedError

    def start(self) -> States:
        """Returns the states before the first step."""
        return (None,) * sum(isinstance(self.get_submodule(name), snn.LIF) for name in self.order)

    def forward(self, x: Tensor) -> Tensor:
        """Returns the mean scores [batch, classes] of spikes [time, batch, ...]."""
        states = self.start()
        total: Any = 0.0
        for x_t in x:
            scores, states = self.step(x_t, states)
            total = total + scores
        mean: Tensor = total / x.shape[0]
        return mean


class DenseNet(Looped):
    """Two fully connected spiking layers and a linear readout: inputs-hidden-hidden-10."""

    order = ("fc1", "lif1", "fc2", "lif2", "readout")

    def __init__(self, inputs: int, hidden: int) -> None:
        super().__init__()
        self.fc1, self.lif1 = nn.Linear(inputs, hidden), snn.LIF(leak=LEAK, surrogate=SURROGATE)
        self.fc2, self.lif2 = nn.Linear(hidden, hidden), snn.LIF(leak=LEAK, surrogate=SURROGATE)
        self.readout = nn.Linear(hidden, CLASSES)
        _amplify(self.fc1, self.fc2)

    def step(self, x: Tensor, states: States) -> tuple[Tensor, States]:
        """See ``Looped``."""
        spikes1, state1 = self.lif1(self.fc1(x), states[0])
        spikes2, state2 = self.lif2(self.fc2(spikes1), states[1])
        return self.readout(spikes2), (state1, state2)


class RecurrentNet(Looped):
    """As ``DenseNet``, with lateral weights in both spiking layers."""

    order = ("fc1", "lif1", "fc2", "lif2", "readout")

    def __init__(self, inputs: int, hidden: int) -> None:
        super().__init__()
        self.fc1, self.lif1 = nn.Linear(inputs, hidden), snn.RLIF(hidden, leak=LEAK, surrogate=SURROGATE)
        self.fc2, self.lif2 = nn.Linear(hidden, hidden), snn.RLIF(hidden, leak=LEAK, surrogate=SURROGATE)
        self.readout = nn.Linear(hidden, CLASSES)
        _amplify(self.fc1, self.fc2)

    def step(self, x: Tensor, states: States) -> tuple[Tensor, States]:
        """See ``Looped``."""
        spikes1, state1 = self.lif1(self.fc1(x), states[0])
        spikes2, state2 = self.lif2(self.fc2(spikes1), states[1])
        return self.readout(spikes2), (state1, state2)


class ConvNet(Looped):
    """Two convolutions with batch normalisation, each followed by spikes and pooling, and a linear readout."""

    order = ("conv1", "norm1", "lif1", "pool", "conv2", "norm2", "lif2", "pool", "flat", "readout")

    def __init__(self, size: int, channels: int) -> None:
        super().__init__()
        self.conv1, self.norm1 = nn.Conv2d(2, channels, 3, padding=1, bias=False), nn.BatchNorm2d(channels)
        self.lif1 = snn.LIF(leak=LEAK, surrogate=SURROGATE)
        self.conv2 = nn.Conv2d(channels, 2 * channels, 3, padding=1, bias=False)
        self.norm2 = nn.BatchNorm2d(2 * channels)
        self.lif2 = snn.LIF(leak=LEAK, surrogate=SURROGATE)
        self.pool, self.flat = nn.AvgPool2d(2), nn.Flatten()
        self.readout = nn.Linear(2 * channels * (size // 4) ** 2, CLASSES)

    def step(self, x: Tensor, states: States) -> tuple[Tensor, States]:
        """See ``Looped``."""
        spikes1, state1 = self.lif1(self.norm1(self.conv1(x)), states[0])
        spikes2, state2 = self.lif2(self.norm2(self.conv2(self.pool(spikes1))), states[1])
        return self.readout(self.flat(self.pool(spikes2))), (state1, state2)


@dataclass(frozen=True)
class Network:
    """A network of the benchmark at one size.

    Attributes:
        title: Name and size, for the table.
        make: Returns the model.
        batch: Examples in a batch.
        features: Shape of one example's input at one time step.
    """

    title: str
    make: Callable[[], Looped]
    batch: int
    features: tuple[int, ...]


NETWORKS = {
    "dense": Network("dense 128-512-512-10", lambda: DenseNet(128, 512), 32, (128,)),
    "recurrent": Network("recurrent 128-512-512-10", lambda: RecurrentNet(128, 512), 32, (128,)),
    "convolutional": Network("convolutional 2x16x16, 16 and 32 channels", lambda: ConvNet(16, 16), 8, (2, 16, 16)),
}
QUICK = {
    "dense": Network("dense 32-64-64-10", lambda: DenseNet(32, 64), 8, (32,)),
    "recurrent": Network("recurrent 32-64-64-10", lambda: RecurrentNet(32, 64), 8, (32,)),
    "convolutional": Network("convolutional 2x8x8, 4 and 8 channels", lambda: ConvNet(8, 4), 4, (2, 8, 8)),
}


def _amplify(*layers: nn.Linear) -> None:
    with torch.no_grad():
        for layer in layers:
            layer.weight *= GAIN
