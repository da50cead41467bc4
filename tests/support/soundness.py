"""Whether a program can tell anything at all: a comparison of dead or random networks proves nothing."""

from __future__ import annotations

from typing import Any

import torch
from torch import Tensor
from torch.utils._python_dispatch import TorchDispatchMode

from support.program import Program
from support.values import all_equal, gradients, leaves

STEPS, BATCH = 12, 4
THRESHOLDS = ("gt", "ge", "lt", "le", "heaviside", "sign", "floor", "round")
LEAST = 0.01
"""Share of neurons and steps that must fire, and share that must be silent, in every layer."""
LEAST_GRADIENT = 1e-8


class Unsound(Exception):
    """The program itself is not fit to tell anything: a fault of the test."""


def require_sound(program: Program) -> None:
    """Requires that the model gives the same twice, that neurons fire and are silent, and that all is trained.

    Raises:
        Unsound: One of these does not hold.
    """
    first, second = program.model(STEPS), program.model(STEPS)
    drawn = program.drawn(STEPS, BATCH)
    try:
        with Thresholds() as thresholds:
            results = program.drive(first, drawn)
        again = program.drive(second, drawn)
        trained = gradients(first, results)
    except Exception as fault:
        raise Unsound(f"the model itself cannot be trained: {type(fault).__name__}: {fault}") from fault
    if not all_equal(results, again):
        raise Unsound("two runs of the model under one seed differ")
    if not all(bool(leaf.isfinite().all()) for leaf in leaves(results)):
        raise Unsound("the model returns values that are not finite")
    shares = thresholds.shares()
    if program.fires and (not shares or not all(LEAST < share < 1 - LEAST for share in shares.values())):
        raise Unsound(f"neurons always or never fire: {shares}")
    for name, gradient in trained.items():
        if gradient is not None and not bool(gradient.isfinite().all()):
            raise Unsound(f"the gradient of {name} is not finite")
        if program.trained and (gradient is None or not gradient.norm() > LEAST_GRADIENT):
            raise Unsound(f"{name} gets no gradient")


class Thresholds(TorchDispatchMode):
    """Counts how often comparisons of floating-point tensors come out true, by the shape of what is compared."""

    def __init__(self) -> None:
        super().__init__()
        self._seen: dict[tuple[int, ...], list[float]] = {}

    def __torch_dispatch__(self, func: Any, types: Any, args: Any = (), kwargs: Any = None) -> Any:
        result = func(*args, **(kwargs or {}))
        compared = args and isinstance(args[0], Tensor) and args[0].is_floating_point()
        if func.overloadpacket.__name__ in THRESHOLDS and compared and result.numel() > BATCH:
            share = float((result != 0).to(torch.float64).mean())
            self._seen.setdefault(tuple(result.shape[1:]), []).append(share)
        return result

    def shares(self) -> dict[tuple[int, ...], float]:
        """Returns the mean share of every shape."""
        return {shape: sum(each) / len(each) for shape, each in self._seen.items()}
