"""Rate curves of leaky neurons: the mean output under a constant current, softened where the true curve bends."""

from __future__ import annotations

import torch
from torch import Tensor
from torch.nn import functional as F

SHARPNESS = 10.0
"""How sharply the softened curves bend at rheobase and saturation, per unit of rate."""


def subtractive_rate(drive: Tensor, leak: Tensor, threshold: Tensor) -> Tensor:
    """Rate of a leaky neuron whose reset subtracts the threshold, from the balance of charge.

    clamp((I - theta (1 - beta)) / (beta theta), 0, 1), softened at both ends so that a silent neuron still has a slope.
    """
    rate = (drive - threshold * (1 - leak)) / (leak * threshold).clamp_min(1e-6)
    return _soft_clamp(rate)


def zero_reset_rate(drive: Tensor, leak: Tensor, threshold: Tensor) -> Tensor:
    """Rate of a leaky neuron that is reset to zero, from its interspike interval.

    ln(beta) / ln(1 - theta (1 - beta) / I), with a softplus on I - theta (1 - beta) before the logarithm.
    """
    leak = leak.clamp(1e-3, 1 - 1e-6)
    rheobase = threshold * (1 - leak)
    above = F.softplus((drive - rheobase) / threshold, beta=SHARPNESS) * threshold
    rate = torch.log(leak) / torch.log(above / (above + rheobase))
    return rate - F.softplus(rate - 1, beta=SHARPNESS)


def _soft_clamp(rate: Tensor) -> Tensor:
    return F.softplus(rate, beta=SHARPNESS) - F.softplus(rate - 1, beta=SHARPNESS)


def linear_core(next_state: object, zero: Tensor, statics: list[Tensor]) -> tuple[Tensor, Tensor, Tensor]:
    """Returns (leak, gain, offset) of v' = leak v + gain I + offset near rest, differentiable in the statics."""
    assert callable(next_state)
    small = torch.full_like(zero, 2.0**-10)
    offset = next_state(zero, zero, statics)
    leak = (next_state(zero, small, statics) - offset) / small
    gain = (next_state(small, zero, statics) - offset) / small
    return leak, gain, offset
