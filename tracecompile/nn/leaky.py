"""The leaky membrane that all layers share, and its leak."""

from __future__ import annotations

import torch
from torch import Tensor, nn


class Leaky(nn.Module):
    """Base of the layers: a membrane that forgets by a factor ``leak`` per step, ``v <- leak v + current``.

    A fixed leak is the buffer ``fixed_leak``. A learned one is the parameter ``raw_leak`` with
    ``leak = 1 / (1 + exp(-raw_leak))``, which no optimiser step can take out of (0, 1).

    Args:
        features: Neurons along the last axis, each with a leak of its own; None for one leak shared by all, where the
            layer takes a current of any shape (images, for example).
        leak: Share of the membrane that is left after one step, in (0, 1); ``exp(-dt / tau)`` for a time constant tau.
            A number, or a tensor of the shape (features,).
        learn_leak: Whether the leak is trained.

    Attributes:
        features: As given.
        learn_leak: As given.

    Raises:
        ValueError: ``features`` is not a positive integer, or ``leak`` is outside (0, 1) or of another shape.
    """

    def __init__(self, features: int | None = None, *, leak: float | Tensor = 0.9, learn_leak: bool = False) -> None:
        super().__init__()
        if features is not None and (isinstance(features, bool) or not isinstance(features, int) or features < 1):
            raise ValueError(f"features must be a positive integer or None, not {features!r}")
        self.features = features
        self.learn_leak = learn_leak
        value = per_neuron("leak", leak, features)
        if not bool(((value > 0) & (value < 1)).all()):
            raise ValueError(f"leak must lie strictly between 0 and 1 in {value.dtype}, not {spread(value)}")
        if learn_leak:
            self.raw_leak = nn.Parameter(torch.logit(value))
        else:
            self.register_buffer("fixed_leak", value)

    @property
    def leak(self) -> Tensor:
        """The leak, in (0, 1), of the shape () or (features,)."""
        return torch.sigmoid(self.raw_leak) if self.learn_leak else self.get_buffer("fixed_leak")

    def extra_repr(self) -> str:
        """Returns what ``repr`` shows between the parentheses."""
        shape = "" if self.features is None else f"{self.features}, "
        return f"{shape}leak={spread(self.leak)}{' (learned)' if self.learn_leak else ''}"


def per_neuron(name: str, value: float | Tensor, features: int | None) -> Tensor:
    """Returns a new tensor of the shape () or (features,), in the default dtype unless ``value`` is a tensor.

    Args:
        name: What the value is, for the error.
        value: A number, or a tensor of that shape; a tensor of the shape () is repeated.
        features: Number of neurons, or None.

    Raises:
        ValueError: The shape is another one, or the value is not of a floating-point kind.
    """
    tensor = value.detach() if isinstance(value, Tensor) else torch.tensor(float(value))
    if not tensor.is_floating_point():
        raise ValueError(f"{name} must be a floating-point tensor or a number, not a tensor of {tensor.dtype}")
    shape = () if features is None else (features,)
    if tensor.shape not in ((), shape):
        raise ValueError(f"{name} must be a number or a tensor of the shape {shape}, not {tuple(tensor.shape)}")
    return tensor.expand(shape).clone()


def spread(values: Tensor) -> str:
    """Returns one number, or the lowest and highest of several: "0.9", "0.85..0.95"."""
    low, high = values.min().item(), values.max().item()
    return f"{low:g}" if low == high else f"{low:g}..{high:g}"
