"""Spikes of a whole sequence of currents, for models that run layer by layer."""

from __future__ import annotations

import torch
from torch import Tensor

import tracecompile.nn as snn

SPIKE = snn.fast_sigmoid(4.0)


def fire(currents: Tensor, leak: float = 0.6) -> Tensor:
    """Returns the spikes of leaky neurons, time first."""
    v = torch.zeros_like(currents[0])
    spikes = []
    for current in currents:
        v = leak * v + current
        z = SPIKE(v - 0.5)
        v = v - 0.5 * z
        spikes.append(z)
    return torch.stack(spikes)
