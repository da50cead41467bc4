"""Where the functions that a graph calls are imported from."""

from __future__ import annotations

import builtins
import sys
from collections.abc import Callable, Iterator
from functools import lru_cache
from typing import Any

import torch

_QUALIFIED = ("torch", "torch.special", "torch.linalg", "torch.fft")
"""Modules whose functions are called by their full name."""
_BY_NAME = ("torch.nn.functional", "operator", "math")
_TRUSTED = ("tracecompile", "torch")
"""Packages whose functions are imported from where they are defined; those of the user come as constants."""


class Imports:
    """Collects the imports of one module text."""

    def __init__(self) -> None:
        self.modules: set[str] = set()
        self.names: dict[str, set[str]] = {}

    def name_of(self, function: Callable[..., Any]) -> str | None:
        """Returns the name by which a function is called and imports it, None for what no import finds."""
        if isinstance(function, (torch._ops.OpOverload, torch._ops.OpOverloadPacket)):
            self.modules.add("torch")
            return f"torch.ops.{str(function).replace('::', '.')}"
        found = place_of(function)
        if found is None:
            return None
        module, name = found
        if module in _QUALIFIED:
            self.modules.add("torch")
            return f"{module}.{name}"
        if module != "builtins":
            self.take(module, name)
        return name

    def take(self, module: str, name: str) -> None:
        """Imports a name, which stands for one thing in the whole text."""
        self.names.setdefault(module, set()).add(name)

    def bound(self) -> Iterator[str]:
        """Yields the names that the imports bind."""
        yield from (module.partition(".")[0] for module in self.modules)
        for found in self.names.values():
            yield from found


def place_of(function: Callable[..., Any]) -> tuple[str, str] | None:
    """Returns the module of a function and its name in it; None for one that is neither torch's nor ours."""
    return _known().get(id(function)) or _defined(function)


@lru_cache(maxsize=1)
def _known() -> dict[int, tuple[str, str]]:
    """Returns the place of every function that graphs commonly call, by its identity."""
    found: dict[int, tuple[str, str]] = {}
    for place in reversed((*_QUALIFIED, *_BY_NAME)):
        for name, value in vars(sys.modules[place]).items():
            if callable(value) and not name.startswith("_"):
                found[id(value)] = place, name
    for name, value in vars(torch.Tensor).items():
        found.setdefault(id(value), ("torch", f"Tensor.{name}"))
    for name, value in vars(torch._C.TensorBase).items():
        found.setdefault(id(value), ("torch", f"Tensor.{name}"))
    found.update((id(value), ("builtins", name)) for name, value in vars(builtins).items() if callable(value))
    return found


def _defined(function: Callable[..., Any]) -> tuple[str, str] | None:
    module, name = getattr(function, "__module__", None) or "", getattr(function, "__name__", "")
    if module.partition(".")[0] not in _TRUSTED or not name.isidentifier():
        return None
    return (module, name) if getattr(sys.modules.get(module), name, None) is function else None
