"""Tells at every call, in microseconds, whether anything of a model is another thing than it was."""

from __future__ import annotations

import itertools
import operator
from collections.abc import Callable, Collection, Iterable, Iterator
from contextlib import contextmanager
from types import MappingProxyType
from typing import Any

import torch
from torch import Tensor, nn

from tracecompile.facts import NO_FACTS, Cells, tables_of


class Watch:
    """Everything that a model is made of, at one time.

    Compared by identity, table by table: a thing that was replaced by an equal one counts as changed here. What that
    means is found out by ``Facts``, which takes longer.
    """

    def __init__(self, model: nn.Module, moving: Collection[str] = ()) -> None:
        """Looks at a model.

        Args:
            model: The model.
            moving: Names of its states: what is within them is not looked at.
        """
        self._kept: list[Any] = []
        self._sized: list[Any] = []
        self._readers: list[Callable[[Any], Iterable[Any]]] = []
        self._read: list[Any] = []
        self._places: dict[tuple[int, str], list[int]] = {}
        self._dictionaries: list[tuple[dict[Any, Any], list[Any], int]] = []
        for _, table, values in tables_of(model, moving):
            self._add(table, values)
        self._sizes = list(map(len, self._sized))
        self._modules = list(model.modules())
        self._classes = list(map(type, self._modules))
        self._tensors = [value for value in self._kept if isinstance(value, Tensor) and _has_memory(value)]
        self._memory = list(map(torch.Tensor.data_ptr, self._tensors))

    def _add(self, table: Any, values: Iterable[Any]) -> None:
        keys = None if isinstance(values, Cells) else _keys(table)
        if isinstance(table, dict) and not isinstance(values, Cells):
            self._dictionaries.append((table, list(table) if keys is None else keys, len(self._kept)))
        self._sized.append(values if keys is None else table)
        if keys is None:
            self._read.append(values)
            self._readers.append(iter)
            self._kept += values
        elif keys:
            keys = keys * 2 if len(keys) == 1 else keys  # of a single key the reader would return no tuple
            for key, place in zip(keys, itertools.count(len(self._kept))):
                self._places.setdefault((id(table), key), []).append(place)
            self._read.append(table)
            self._readers.append(operator.itemgetter(*keys))
            self._kept += [table[key] for key in keys]

    def holds(self) -> bool:
        """Tells whether everything is as it was."""
        try:
            now = itertools.chain.from_iterable(map(operator.call, self._readers, self._read))
            return (
                list(map(len, self._sized)) == self._sizes
                and all(map(operator.is_, now, self._kept))
                and list(map(type, self._modules)) == self._classes
                and list(map(torch.Tensor.data_ptr, self._tensors)) == self._memory
            )
        except KeyError:
            return False

    @contextmanager
    def put_back(self) -> Iterator[None]:
        """Lets the model be as it was while the context is open: modules, hooks, attributes, Parameters and buffers."""
        tables, classes = ([], []) if self.holds() else self._changed()
        try:
            for table, was, _ in tables:
                _fill(table, was)
            for module, kind, _ in classes:
                module.__class__ = kind
            yield
        finally:
            for table, _, now in tables:
                _fill(table, now)
            for module, _, kind in classes:
                module.__class__ = kind

    def _changed(self) -> tuple[list[tuple[Any, Any, Any]], list[tuple[Any, type, type]]]:
        """Returns dictionaries, and modules, with what each was and what it is."""
        tables = []
        for table, keys, first in self._dictionaries:
            was = dict(zip(keys, self._kept[first : first + len(keys)], strict=True))
            now = {key: value for key, value in table.items() if key not in NO_FACTS}
            if was.keys() != now.keys() or any(now[key] is not value for key, value in was.items()):
                tables.append((table, was, now))
        classes = zip(self._modules, self._classes, map(type, self._modules), strict=True)
        return tables, [each for each in classes if each[1] is not each[2]]

    def follow(self, table: dict[str, Any], key: str, value: Any) -> bool:
        """Takes a new value in a table for what was there; tells whether there was one."""
        places = self._places.get((id(table), key), [])
        for place in places:
            self._kept[place] = value
        return bool(places)


def _keys(table: Any) -> list[str] | None:
    """Returns what is looked at in a dictionary of attributes; None for a table of which everything is."""
    if isinstance(table, MappingProxyType):
        return [key for key in table if not key.startswith("__")]
    if isinstance(table, dict) and all(isinstance(key, str) for key in table):
        return [key for key in table if key not in NO_FACTS]
    return None


def _fill(table: dict[Any, Any], entries: dict[Any, Any]) -> None:
    for key in [key for key in table if key not in NO_FACTS]:
        del table[key]
    table.update(entries)


def _has_memory(value: Tensor) -> bool:
    """Tells whether a tensor says where its memory is: what is assigned to its ``data`` is elsewhere."""
    try:
        return value.data_ptr() != 0
    except RuntimeError:
        return False
