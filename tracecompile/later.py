"""Values that a device has still to say: asked for at once, read when they are there, so that no step waits for it."""

from __future__ import annotations

from collections.abc import Sequence

import torch
from torch import Tensor


class Later:
    """A value on its way to the main memory.

    On the CPU it is there at once. From a CUDA device it is copied beside whatever else runs there.
    """

    def __init__(self, value: Tensor) -> None:
        """Sends for a value."""
        self._event: torch.cuda.Event | None = None
        self._value = value.detach()
        if value.is_cuda:
            with torch.cuda.device(value.device):
                self._value = torch.empty(value.shape, dtype=value.dtype, device="cpu", pin_memory=True)
                self._value.copy_(value.detach(), non_blocking=True)
                self._event = torch.cuda.Event()
                self._event.record()

    @property
    def is_here(self) -> bool:
        """Tells whether reading it would not wait."""
        return self._event is None or self._event.query()

    def get(self) -> Tensor:
        """Returns the value, in main memory; waits until it is there."""
        if self._event is not None:
            self._event.synchronize()
        return self._value


def placed(values: Sequence[float] | Sequence[int], dtype: torch.dtype, device: torch.device) -> Tensor:
    """Returns numbers as a tensor on a device, (len(values),), without waiting for what runs there."""
    if device.type != "cuda":
        return torch.tensor(values, dtype=dtype, device=device)
    return torch.tensor(values, dtype=dtype, device="cpu", pin_memory=True).to(device, non_blocking=True)
