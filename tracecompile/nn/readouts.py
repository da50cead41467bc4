"""Readouts: layers that integrate and do not spike."""

from __future__ import annotations

import torch
from torch import Tensor

from tracecompile.nn.leaky import Leaky


class LI(Leaky):
    """Leaky integrator: a membrane that is read as it is.

    One call is one time step::

        v[t] = leak v[t-1] + current[t]

    A current that stays at ``c`` takes the membrane to ``c / (1 - leak)``.
    Source: Gerstner et al. 2014, Neuronal Dynamics, section 1.3, with the factor (1 - leak) left to the weights.

    Args:
        features, leak, learn_leak: See ``Leaky``.

    Raises:
        ValueError: As ``Leaky``.
    """

    def forward(self, current: Tensor, state: Tensor | None = None) -> tuple[Tensor, Tensor]:
        """Advances by one time step.

        Args:
            current: Input of this step, (..., features), in units of the membrane.
            state: The membrane that the last step returned, of the shape of ``current``; None for zero.

        Returns:
            The membrane, twice: as the output and as the next state; both (..., features).
        """
        membrane = torch.zeros_like(current) if state is None else state
        membrane = self.leak * membrane + current
        return membrane, membrane


class LIS(Leaky):
    """Leaky integrate and softmax: a leaky integrator that is read as a distribution over its neurons.

    One call is one time step::

        v[t] = leak v[t-1] + current[t]
        p[t] = softmax(v[t])              over the last axis

    The output is a probability already: train it with ``nll_loss`` on ``log=True``, not with ``cross_entropy``, which
    would take a second softmax. For ``cross_entropy`` use ``LI``.
    Source: the readout of traceTorch 0.1 (2025).

    Args:
        features, leak, learn_leak: See ``Leaky``.
        log: Whether to return ``log p``.

    Raises:
        ValueError: As ``Leaky``.
    """

    def __init__(
        self,
        features: int | None = None,
        *,
        leak: float | Tensor = 0.9,
        learn_leak: bool = False,
        log: bool = False,
    ) -> None:
        super().__init__(features, leak=leak, learn_leak=learn_leak)
        self.log = log

    def forward(self, current: Tensor, state: Tensor | None = None) -> tuple[Tensor, Tensor]:
        """Advances by one time step.

        Args:
            current: Input of this step, (..., features), in units of the membrane.
            state: The membrane that the last step returned, of the shape of ``current``; None for zero.

        Returns:
            Probabilities, or their logarithms, and the membrane as the next state; both (..., features).
        """
        membrane = torch.zeros_like(current) if state is None else state
        membrane = self.leak * membrane + current
        output = torch.log_softmax(membrane, dim=-1) if self.log else torch.softmax(membrane, dim=-1)
        return output, membrane

    def extra_repr(self) -> str:
        """Returns what ``repr`` shows between the parentheses."""
        return super().extra_repr() + (", log=True" if self.log else "")
