"""Tells at every call, in microseconds, whether anything of a model is another thing than it was."""

from __future__ import annotations

import itertools
from operator import is_
from typing import Any

import torch
from torch import Tensor, nn

from tracecompile.facts import tables_of


class Watch:
    """Everything that a model is made of, at one time.

    Compared by identity, table by table: a thing that was replaced by an equal one counts as changed here. What that
    means is found out by ``Facts``, which takes longer.
    """

    def __init__(self, model: nn.Module) -> None:
        """Looks at a model."""
        found = list(tables_of(model))
        self._values = [values for _, _, values in found]
        self._sizes = [len(values) for values in self._values]  # type: ignore[arg-type]
        self._kept = list(itertools.chain.from_iterable(self._values))
        starts = itertools.accumulate(self._sizes, initial=0)
        self._starts = {id(table): start for (_, table, _), start in zip(found, starts, strict=False)}
        self._modules = list(model.modules())
        self._classes = list(map(type, self._modules))
        self._tensors = [value for value in self._kept if isinstance(value, Tensor)]
        self._kinds = list(map(_kind, self._tensors))

    def holds(self) -> bool:
        """Tells whether everything is as it was."""
        return (
            list(map(len, self._values)) == self._sizes  # type: ignore[arg-type]
            and all(map(is_, itertools.chain.from_iterable(self._values), self._kept))
            and list(map(type, self._modules)) == self._classes
            and list(map(_kind, self._tensors)) == self._kinds
        )

    def follow(self, table: dict[str, Any], key: str, value: Any) -> None:
        """Takes a new value in a table for what was there."""
        start = self._starts.get(id(table))
        if start is not None and len(self._kept) > start:
            for place, name in enumerate(table, start):
                if name == key:
                    self._kept[place] = value


def _kind(value: Tensor) -> tuple[torch.dtype, torch.device, torch.Size]:
    return value.dtype, value.device, value.shape
