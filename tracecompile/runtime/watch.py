"""Tells at every call, in microseconds, whether anything of a model is another thing than it was."""

from __future__ import annotations

import itertools
import operator
from collections.abc import Callable, Collection, Iterable, Iterator
from contextlib import contextmanager
from types import CodeType, MappingProxyType
from typing import Any

from torch import Tensor, nn

from tracecompile.facts import NO_FACTS, Cells, tables_of

PART = 50
"""Terms of one function: with many more names Python looks each up the slow way."""


class Watch:
    """Everything that a model is made of, at one time.

    Compared by identity, table by table: a thing that was replaced by an equal one counts as changed here. What that
    means is found out by ``Facts``, which takes longer.

    Attributes:
        holds: Tells whether everything is as it was.
    """

    def __init__(self, model: nn.Module, moving: Collection[str] = (), before: Watch | None = None) -> None:
        """Looks at a model.

        Args:
            model: The model.
            moving: Names of its states: what is within them is not looked at.
            before: Has looked at the same model: what it has compiled serves again where the model is made alike.
        """
        self._kept: list[Any] = []
        self._places: dict[tuple[int, str], int] = {}
        self._dictionaries: list[tuple[str, dict[Any, Any], list[Any], list[Any] | None]] = []
        self._moving = moving
        self._modules = list(model.modules())
        self._classes = list(map(type, self._modules))
        self._known: dict[str, Any] = {"kept": self._kept, "same": operator.is_}
        self._terms = [
            f"type({self._name('m', module)}) is {self._name('c', kind)}"
            for module, kind in zip(self._modules, self._classes, strict=True)
        ]
        for prefix, table, values in tables_of(model, moving):
            self._add(prefix, table, values, moving)
        self._text = _text(self._terms)
        alike = before is not None and before._text == self._text
        self._code: CodeType = before._code if before is not None and alike else compile(self._text, "<watch>", "exec")
        exec(self._code, self._known)
        self.holds: Callable[[], bool] = self._known["holds"]

    def _name(self, kind: str, thing: Any) -> str:
        name = f"{kind}{len(self._known)}"
        self._known[name] = thing
        return name

    def _add(self, prefix: str, table: Any, values: Iterable[Any], moving: Collection[str]) -> None:
        keys = None if isinstance(values, Cells) else _keys(table)
        sized: Any = values if keys is None else table
        name = self._name("t", sized)
        self._terms.append(f"len({name}) == {len(sized)}" if len(sized) else f"not {name}")
        kept = list(values) if keys is None else [table[key] for key in keys]
        if isinstance(table, dict) and not isinstance(values, Cells):
            held = None if keys is not None else kept
            self._dictionaries.append((prefix, table, list(table) if keys is None else keys, held))
        if keys is None and kept:
            self._terms.append(f"all(map(same, {name}, {self._name('k', kept)}))")
        for key in keys or ():
            self._terms.append(f"{name}[{key!r}] is kept[{len(self._kept)}]")
            self._places[id(table), key] = len(self._kept)
            self._kept.append(table[key])
        named = zip(keys or itertools.repeat(""), kept, strict=False)
        for value in (value for key, value in named if f"{prefix}{key}" not in moving):
            if isinstance(value, Tensor) and (memory := _memory(value)):
                self._terms.append(f"{self._name('p', value.data_ptr)}() == {memory}")

    @contextmanager
    def put_back(self) -> Iterator[None]:
        """Lets the model be as it was while the context is open: modules, hooks, attributes, Parameters and buffers."""
        tables, classes = ([], []) if self.holds() else self._changed()
        try:
            for table, spared, was, _ in tables:
                _fill(table, spared, was)
            for module, kind, _ in classes:
                module.__class__ = kind
            yield
        finally:
            for table, spared, _, now in tables:
                _fill(table, spared, now)
            for module, _, kind in classes:
                module.__class__ = kind

    def _changed(self) -> tuple[list[tuple[Any, set[Any], Any, Any]], list[tuple[Any, type, type]]]:
        """Returns dictionaries and modules, with what each was and is: states, and what is torch's own, aside."""
        tables = []
        for prefix, table, keys, held in self._dictionaries:
            kept = held if held is not None else [self._kept[self._places[id(table), key]] for key in keys]
            spared = {key for key in table if key in NO_FACTS or f"{prefix}{key}" in self._moving}
            was = {key: value for key, value in zip(keys, kept, strict=True) if f"{prefix}{key}" not in self._moving}
            now = {key: value for key, value in table.items() if key not in spared}
            if was.keys() != now.keys() or any(now[key] is not value for key, value in was.items()):
                tables.append((table, spared, was, now))
        classes = zip(self._modules, self._classes, map(type, self._modules), strict=True)
        return tables, [each for each in classes if each[1] is not each[2]]

    def follow(self, table: dict[str, Any], key: str, value: Any) -> bool:
        """Takes a new value in a table for what was there; tells whether there was one."""
        place = self._places.get((id(table), key))
        if place is not None:
            self._kept[place] = value
        return place is not None


def _text(terms: list[str]) -> str:
    """Returns a function ``holds`` of one term per entry.

    It runs three times as fast, among all the other things that a call does, as loops of any kind.
    """
    parts = [" and ".join(terms[begin : begin + PART]) for begin in range(0, len(terms), PART)]
    lines = [f"def part{number}():\n    return {part}\n" for number, part in enumerate(parts)]
    whole = " and ".join(f"part{number}()" for number in range(len(parts)))
    lines.append(f"def holds():\n    try:\n        return {whole}\n    except KeyError:\n        return False\n")
    return "\n".join(lines)


def _keys(table: Any) -> list[str] | None:
    """Returns what is looked at in a dictionary of attributes; None for a table of which everything is."""
    if isinstance(table, MappingProxyType):
        return [key for key in table if not key.startswith("__")]
    if isinstance(table, dict) and all(isinstance(key, str) for key in table):
        return [key for key in table if key not in NO_FACTS]
    return None


def _fill(table: dict[Any, Any], spared: set[Any], entries: dict[Any, Any]) -> None:
    for key in [key for key in table if key not in spared]:
        del table[key]
    table.update(entries)


def _memory(value: Tensor) -> int:
    """Returns where the memory of a tensor is, 0 where it does not say: another ``data`` is elsewhere."""
    try:
        return value.data_ptr()
    except RuntimeError:
        return 0
