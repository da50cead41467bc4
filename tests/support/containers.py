"""Containers of published networks that work on time and batch together."""

from __future__ import annotations

from torch import Tensor, nn


class SeqToANN(nn.Module):
    """Runs any block on time and batch together: the container of many published networks."""

    def __init__(self, *block: nn.Module) -> None:
        super().__init__()
        self.block = nn.Sequential(*block)

    def forward(self, x: Tensor) -> Tensor:
        y = self.block(x.flatten(0, 1).contiguous())
        return y.view(x.shape[0], x.shape[1], *y.shape[1:])
