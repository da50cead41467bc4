"""The random generators that a model may draw from: kept as the user left them, and set alike for two runs."""

from __future__ import annotations

import random
from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import dataclass
from typing import Any

import numpy as np
import torch
from torch import Tensor


@dataclass(frozen=True)
class Generators:
    """States of torch's, numpy's and Python's global generators."""

    torch: tuple[Tensor, ...]
    numpy: Any
    python: Any

    @classmethod
    def now(cls) -> Generators:
        """Returns the states as they are."""
        devices = torch.cuda.get_rng_state_all() if torch.cuda.is_initialized() else []
        return cls((torch.get_rng_state(), *devices), np.random.get_state(), random.getstate())

    def restore(self) -> None:
        """Puts the states back."""
        torch.set_rng_state(self.torch[0])
        if self.torch[1:]:
            torch.cuda.set_rng_state_all(list(self.torch[1:]))
        np.random.set_state(self.numpy)
        random.setstate(self.python)

    def drawn_alike(self, other: Generators) -> bool:
        """Tells whether torch's generators stand where others stand."""
        return all(torch.equal(one, two) for one, two in zip(self.torch, other.torch, strict=True))


@contextmanager
def generators_kept() -> Iterator[Generators]:
    """Puts the generators back when the context is left; yields their states."""
    states = Generators.now()
    try:
        yield states
    finally:
        states.restore()
