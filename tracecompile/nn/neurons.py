"""Spiking layers: leaky integrate and fire, feed-forward and recurrent."""

from __future__ import annotations

from typing import Literal, NamedTuple, get_args

import torch
from torch import Tensor, nn

from tracecompile.nn.leaky import Leaky, per_neuron, spread
from tracecompile.nn.surrogates import SpikeFunction, arctan

Reset = Literal["subtract", "zero", "none"]
"""What a spike does to the membrane: threshold subtracted, membrane set to zero, nothing."""


class LIF(Leaky):
    """Leaky integrate and fire.

    One call is one time step, in this order: leak and integrate, spike, reset::

        u[t] = leak v[t-1] + current[t]
        s[t] = 1 if u[t] > threshold else 0          (backward: the surrogate's slope)
        v[t] = u[t] - s[t] threshold                 reset "subtract"
               u[t] (1 - s[t])                       reset "zero"
               u[t]                                  reset "none"

    Sources: Gerstner et al. 2014, Neuronal Dynamics, section 1.3; for the discrete form Neftci, Mostafa and Zenke 2019
    (IEEE Signal Processing Magazine 36:6). The reset acts in the step of the spike, where snnTorch's acts in the next.

    Args:
        features, leak, learn_leak: See ``Leaky``.
        threshold: Membrane above which a neuron spikes, positive, in units of the membrane. A number, or a tensor of
            the shape (features,).
        reset: "subtract", "zero" or "none".
        detach_reset: Whether the gradient ignores that the reset depends on the spike, as Zenke and Vogels 2021 (Neural
            Computation 33:4) recommend. The values are the same.
        learn_threshold: Whether the threshold is trained. Nothing keeps it positive then.
        surrogate: Spike function of ``u - threshold``; None for ``arctan()``.

    Raises:
        ValueError: As ``Leaky``; or ``threshold`` is not positive or of another shape, or ``reset`` is unknown.
    """

    def __init__(
        self,
        features: int | None = None,
        *,
        leak: float | Tensor = 0.9,
        threshold: float | Tensor = 1.0,
        reset: Reset = "subtract",
        detach_reset: bool = True,
        learn_leak: bool = False,
        learn_threshold: bool = False,
        surrogate: SpikeFunction | None = None,
    ) -> None:
        super().__init__(features, leak=leak, learn_leak=learn_leak)
        if reset not in get_args(Reset):
            raise ValueError(f"reset must be one of {', '.join(map(repr, get_args(Reset)))}, not {reset!r}")
        value = per_neuron("threshold", threshold, features)
        if not bool(((value > 0) & value.isfinite()).all()):
            raise ValueError(f"threshold must be positive and finite, not {spread(value)}")
        self.threshold: Tensor
        if learn_threshold:
            self.threshold = nn.Parameter(value)
        else:
            self.register_buffer("threshold", value)
        self.learn_threshold = learn_threshold
        self.reset = reset
        self.detach_reset = detach_reset
        self.surrogate: SpikeFunction = arctan() if surrogate is None else surrogate

    def fire(self, membrane: Tensor) -> tuple[Tensor, Tensor]:
        """Returns the spikes of a membrane and what the reset leaves of it, both of its shape (..., features)."""
        threshold = self.threshold
        spikes = self.surrogate(membrane - threshold)
        gate = spikes.detach() if self.detach_reset else spikes
        if self.reset == "subtract":
            membrane = membrane - gate * threshold
        elif self.reset == "zero":
            membrane = membrane * (1 - gate)
        return spikes, membrane

    def forward(self, current: Tensor, state: Tensor | None = None) -> tuple[Tensor, Tensor]:
        """Advances by one time step.

        Args:
            current: Input of this step, (..., features), in units of the membrane.
            state: The membrane that the last step returned, of the shape of ``current``; None for zero.

        Returns:
            Spikes, 0 or 1, and the membrane after the reset as the next state; both (..., features).
        """
        membrane = torch.zeros_like(current) if state is None else state
        return self.fire(self.leak * membrane + current)

    def extra_repr(self) -> str:
        """Returns what ``repr`` shows between the parentheses."""
        learned = " (learned)" if self.learn_threshold else ""
        detached = ", detach_reset=False" if not self.detach_reset and self.reset != "none" else ""
        surrogate = "" if isinstance(self.surrogate, nn.Module) else f", surrogate={self.surrogate!r}"
        return (
            f"{super().extra_repr()}, threshold={spread(self.threshold)}{learned}, reset={self.reset!r}"
            f"{detached}{surrogate}"
        )


class RLIFState(NamedTuple):
    """What a recurrent layer hands to its next step.

    Attributes:
        membrane: After the reset, (..., features).
        spikes: 0 or 1, (..., features).
    """

    membrane: Tensor
    spikes: Tensor


class RLIF(LIF):
    """Recurrent leaky integrate and fire: lateral weights on the layer's own spikes, one step late.

    One call is one time step; spike and reset are those of ``LIF``::

        u[t] = leak v[t-1] + current[t] + lateral s[t-1]

    ``lateral`` is an ``nn.Linear(features, features, bias=False)`` with its usual initial weights; a row belongs to the
    neuron that receives.
    Source: Bellec et al. 2018 (NeurIPS).

    Args:
        features: Number of neurons.
        leak, threshold, reset, detach_reset, learn_leak, learn_threshold, surrogate: See ``LIF``.

    Raises:
        ValueError: As ``LIF``.
    """

    def __init__(
        self,
        features: int,
        *,
        leak: float | Tensor = 0.9,
        threshold: float | Tensor = 1.0,
        reset: Reset = "subtract",
        detach_reset: bool = True,
        learn_leak: bool = False,
        learn_threshold: bool = False,
        surrogate: SpikeFunction | None = None,
    ) -> None:
        super().__init__(
            features,
            leak=leak,
            threshold=threshold,
            reset=reset,
            detach_reset=detach_reset,
            learn_leak=learn_leak,
            learn_threshold=learn_threshold,
            surrogate=surrogate,
        )
        if self.features is None:
            raise ValueError("features of a recurrent layer must be a positive integer, not None")
        self.lateral = nn.Linear(features, features, bias=False)

    def forward(self, current: Tensor, state: RLIFState | None = None) -> tuple[Tensor, RLIFState]:  # type: ignore[override]
        """Advances by one time step.

        Args:
            current: Input of this step from outside the layer, (..., features), in units of the membrane.
            state: What the last step returned; None for a membrane of zero and no spikes.

        Returns:
            Spikes, 0 or 1, (..., features), and the next state.
        """
        if state is None:
            state = RLIFState(torch.zeros_like(current), torch.zeros_like(current))
        membrane, spikes = state
        spikes, membrane = self.fire(self.leak * membrane + current + self.lateral(spikes))
        return spikes, RLIFState(membrane, spikes)
