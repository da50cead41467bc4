"""What a converted network is compared with in training: two rules that are known from the literature.

Both run the same network forward, with the same values, and cut the graph over time in their own way.
"""

from __future__ import annotations

import torch
from fidelity_networks import RecurrentNet
from torch import Tensor, nn
from torch.nn import functional

import tracecompile.nn as snn


def truncated(model: RecurrentNet, spikes: Tensor, window: int = 10) -> Tensor:
    """Truncated backpropagation through time: the state is detached after every ``window`` steps."""
    state1 = state2 = None
    scores = []
    for step, x in enumerate(spikes):
        if step % window == 0 and step > 0:
            state1, state2 = (snn.RLIFState(*(part.detach() for part in state)) for state in (state1, state2))
        s1, state1 = model.layer1(model.input1(x), state1)
        s2, state2 = model.layer2(model.input2(s1), state2)
        scores.append(model.output(s2))
    return torch.stack(scores)


def online(model: RecurrentNet, spikes: Tensor) -> Tensor:
    """Online training through time (Xiao et al., NeurIPS 2022): no gradient flows from one step to another.

    The membrane is detached between steps, and instead of this step's spikes the weights see a trace of all spikes so
    far that decays like the membrane: ``dW += (signal * slope) outer trace``, accumulated over all steps. Upstream
    goes the signal of this step alone.
    """
    layers = (OnlineLayer(model.input1, model.layer1), OnlineLayer(model.input2, model.layer2))
    scores = []
    for x in spikes:
        signal = x
        for layer in layers:
            signal = layer.step(signal)
        scores.append(model.output(signal))
    return torch.stack(scores)


class OnlineLayer:
    """A recurrent layer with the traces of what enters it."""

    def __init__(self, synapse: nn.Linear, neurons: snn.RLIF) -> None:
        self.synapse, self.neurons = synapse, neurons
        self.input_trace = self.lateral_trace = self.membrane = self.spikes = torch.zeros(())

    def step(self, x: Tensor) -> Tensor:
        """Returns the spikes of one time step for the spikes ``x`` that arrive in it."""
        leak, lateral = self.neurons.leak.mean(), self.neurons.lateral  # all leaks are the same
        spikes = self.spikes.expand(len(x), lateral.in_features)
        self.input_trace = leak * self.input_trace.detach() + x
        self.lateral_trace = leak * self.lateral_trace + spikes
        current = through_trace(self.synapse, x, self.input_trace) + through_trace(lateral, spikes, self.lateral_trace)
        fired, membrane = self.neurons.fire(leak * self.membrane + current)
        self.membrane, self.spikes = membrane.detach(), fired.detach()
        return fired


def through_trace(linear: nn.Linear, spikes: Tensor, trace: Tensor) -> Tensor:
    """Returns the current of the spikes, with the gradient of the weights taken at the trace."""
    with torch.no_grad():
        value = linear(spikes)
    at_trace = functional.linear(trace, linear.weight, linear.bias)
    return value + (at_trace - at_trace.detach())
