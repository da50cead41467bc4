"""What a capture has read of a model besides its values: modules, hooks, numbers, types and shapes of its tensors.

A model is an ordinary object that anybody may change after it was converted. Values of Parameters and buffers are
looked up at every call, by name. Everything else that decides what forward does is a fact, and another fact is another
program.
"""

from __future__ import annotations

import functools
import sys
from collections import deque
from collections.abc import Collection, Iterable, Iterator
from types import CellType, FunctionType, MethodType
from typing import Any

import torch
from torch import Tensor, nn

from tracecompile.capture.tracing.step_numbers import is_users

HOOKS = ("_forward_hooks", "_forward_pre_hooks", "_backward_hooks", "_backward_pre_hooks")
"""Tables of a module's hooks that its calls ask."""
NO_FACTS = frozenset(nn.Module().__dict__) | {"_modules_in_registries", "_computed_over_time", "_compiled_call_impl"}
"""Attributes of modules that torch and this package keep for themselves; training is asked where forward asks it."""
PLAIN = (type(None), bool, int, float, complex, str, bytes, torch.dtype, torch.device, torch.Size)
LARGEST = 256
"""Entries up to which a list or a dictionary is looked into: longer ones are data."""
DEEPEST = 5
"""How deep containers and objects are looked into."""


class Same:
    """A thing that is compared by what it is, not by what it is equal to."""

    def __init__(self, thing: Any) -> None:
        """Holds the thing, so that no other one takes its place in memory."""
        self.thing = thing

    def __eq__(self, other: object) -> bool:
        return isinstance(other, Same) and self.thing is other.thing

    def __hash__(self) -> int:
        return id(self.thing)

    def __repr__(self) -> str:
        return getattr(self.thing, "__qualname__", type(self.thing).__qualname__)


class Cells:
    """What a function has closed over, as it is now."""

    def __init__(self, cells: tuple[CellType, ...]) -> None:
        """Takes the cells of the function."""
        self.cells = cells

    def __len__(self) -> int:
        return len(self.cells)

    def __iter__(self) -> Iterator[Any]:
        return (_content(cell) for cell in self.cells)


Table = tuple[str, Any, Iterable[Any]]
"""(what its entries are named by, the mapping or the sequence, what gives its values as they are now)."""


def tables_of(model: nn.Module, moving: Collection[str] = ()) -> Iterator[Table]:
    """Yields everything that entries of a model are kept in, itself and its parts, each once.

    Args:
        model: The model.
        moving: Names of its states: what is within them is left out.
    """
    seen: set[int] = set()
    for path, module in model.named_modules():
        prefix = f"{path}." if path else ""
        held = vars(module)
        yield prefix, held, held.values()
        for name in ("_parameters", "_buffers", "_modules", *HOOKS):
            yield (f"{prefix}{name} " if name in HOOKS else prefix), held[name], held[name].values()
        for name, value in held.items():
            if name not in NO_FACTS and f"{prefix}{name}" not in moving:
                yield from _within(f"{prefix}{name}", value, seen, DEEPEST)
        for owner in type(module).__mro__:
            if id(owner) not in seen and _is_users(owner):
                seen.add(id(owner))
                yield f"class {owner.__qualname__}.", vars(owner), vars(owner).values()


def _within(name: str, value: Any, seen: set[int], depth: int) -> Iterator[Table]:
    """Yields the tables within a value."""
    if depth == 0 or isinstance(value, (*PLAIN, Tensor, nn.Module)) or id(value) in seen:
        return
    seen.add(id(value))
    found = list(_tables(name, value))
    yield from found
    for prefix, table, values in found:
        for key, entry in zip(_keys(table), list(values), strict=True):
            yield from _within(f"{prefix}{key}", entry, seen, depth - 1)


def _tables(name: str, value: Any) -> Iterator[Table]:
    if isinstance(value, dict):
        if len(value) <= LARGEST:
            yield f"{name}.", value, value.values()
    elif isinstance(value, (list, tuple, deque, set, frozenset)):
        if len(value) <= LARGEST:
            yield f"{name}.", value, value
    elif isinstance(value, FunctionType):
        if value.__closure__:
            cells = Cells(value.__closure__)
            yield f"{name} over ", dict.fromkeys(value.__code__.co_freevars), cells
    elif isinstance(value, functools.partial):
        yield f"{name}.", value.args, value.args
        yield f"{name}.", value.keywords, value.keywords.values()
        yield f"{name}.", (value.func,), (value.func,)
    elif isinstance(value, MethodType):
        yield f"{name}.", (value.__self__,), (value.__self__,)
    elif _is_users(type(value)) and hasattr(value, "__dict__"):
        yield f"{name}.", vars(value), vars(value).values()


def _keys(table: Any) -> list[Any]:
    return list(table) if isinstance(table, dict) or hasattr(table, "items") else list(range(len(table)))


def _content(cell: CellType) -> Any:
    try:
        return cell.cell_contents
    except ValueError:  # not filled yet
        return None


def _is_users(owner: type) -> bool:
    module = sys.modules.get(owner.__module__)
    file = getattr(module, "__file__", None)
    return owner.__module__ == "__main__" or (file is not None and is_users(file) and owner.__module__ != "builtins")


class Facts:
    """The facts of a model at one time.

    Attributes:
        entries: What is compared, by a name that the user knows.
        attributes: Names of plain attributes of modules that hide none of their classes: a forward that was captured
            while one was not there has not read it.
    """

    def __init__(self, model: nn.Module) -> None:
        """Looks at a model."""
        self.entries: dict[str, Any] = {}
        self.attributes = {
            f"{path}.{name}" if path else name
            for path, module in model.named_modules()
            for name in vars(module)
            if name not in NO_FACTS and not hasattr(type(module), name)
        }
        tensors: dict[int, str] = {}
        for prefix, table, values in tables_of(model):
            of_class = prefix.startswith("class ")
            for key, value in zip(_keys(table), list(values), strict=True):
                if isinstance(key, str) and (key in NO_FACTS or (of_class and key.startswith("__"))):
                    continue
                name = f"{prefix}{key}"
                if isinstance(value, Tensor):
                    self.entries[name] = _of_tensor(value, tensors.setdefault(id(value), name))
                elif isinstance(value, PLAIN):
                    self.entries[name] = (type(value), repr(value))
                elif isinstance(value, (nn.Module, FunctionType)) or not of_class:
                    self.entries[name] = (type(value), None) if _is_container(value) else Same(value)
        for path, module in model.named_modules():
            self.entries[f"class of {path}"] = Same(type(module))

    def differing(self, now: Facts, moving: Collection[str]) -> list[str]:
        """Returns the names of what is another thing now.

        Args:
            now: Facts of the same model, later.
            moving: Names of the states and statistics that the model itself moves: a tensor there is no fact.
        """
        added = now.attributes - self.entries.keys()
        found = []
        for name in self.entries.keys() | now.entries.keys():
            one, other = self.entries.get(name), now.entries.get(name)
            if one == other or _moves(name, moving, (one, other)) or _is_within(name, added):
                continue
            found.append(name)
        return sorted(found)


def _of_tensor(value: Tensor, first: str) -> tuple[Any, ...]:
    return "tensor", value.dtype, value.shape, value.layout, first


def _moves(name: str, moving: Collection[str], entries: tuple[Any, Any]) -> bool:
    """Tells whether an entry is a state: what it holds as a tensor, or within a container, is no fact."""
    if name in moving:
        return any(isinstance(entry, tuple) and entry[0] == "tensor" for entry in entries)
    return _is_within(name, moving)


def _is_within(name: str, roots: Collection[str]) -> bool:
    return name in roots or any(name.startswith((f"{root}.", f"{root} ")) for root in roots)


def _is_container(value: Any) -> bool:
    return isinstance(value, (dict, list, tuple, deque, set, frozenset))
