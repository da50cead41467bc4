"""Which functions a written program may call, by name.

A program that is read calls nothing else: no file, no process and no attribute beyond those of a tensor is reached
from it, whoever has written it.
"""

from __future__ import annotations

import builtins
import importlib
import math
import operator
from collections.abc import Callable
from typing import Any

import torch

from tracecompile.errors import InvalidInput
from tracecompile.printing.imports import place_of

OPERATORS = frozenset(operator.__all__) - {"attrgetter", "itemgetter", "methodcaller", "call"}
BUILTINS = frozenset(
    "abs bool complex divmod float getattr int len list max min pow range round slice sum tuple".split()
)
TORCH = ("torch", "torch.special", "torch.linalg", "torch.fft", "torch.nn.functional")
OWN = frozenset(
    f"tracecompile.{module}"
    for module in "exact drawn rules.accumulation rules.norm rules.elementary rules.sums rules.jacobian".split()
)
"""Modules of this package whose functions the compiler puts into programs."""
METHODS = frozenset(name for name in (*dir(torch.Tensor), *dir(torch.Size)) if not name.startswith("_"))
UNSAFE = frozenset(
    "apply_ map_ map2_ numpy tofile storage untyped_storage register_hook register_post_accumulate_grad_hook "
    "share_memory_ backward set_ data_ptr from_file load save compile".split()
)
"""What reaches beyond values: callbacks, files, memory of other owners."""


def written_name(function: Callable[..., Any]) -> str | None:
    """Returns the name of a function that a program may call, None for any other."""
    if isinstance(function, torch._ops.OpOverload):
        return f"torch.ops.{str(function).replace('::', '.')}"
    if isinstance(function, type) and vars(builtins).get(function.__name__) is function:
        name = f"builtins.{function.__name__}"
    else:
        place = place_of(function)
        name = "" if place is None else ".".join(place)
    try:
        return name if named(name) is function else None
    except InvalidInput:
        return None


def named(name: str) -> Callable[..., Any]:
    """Returns the function of a name.

    Raises:
        InvalidInput: No program may call it.
    """
    found: Any = _overload(name) if name.startswith("torch.ops.") else _attribute(name)
    if not callable(found):
        raise InvalidInput(f"The program calls {name}, which no program of this package does.")
    function: Callable[..., Any] = found
    return function


def _overload(name: str) -> Any:
    parts = name.split(".")[2:]
    if len(parts) != 3 or parts[0] not in ("aten", "prims"):
        return None
    packet = getattr(getattr(torch.ops, parts[0]), parts[1], None)
    return getattr(packet, parts[2], None)


def _attribute(name: str) -> Any:
    module, _, last = name.rpartition(".")
    if last in UNSAFE or last.startswith("__import"):
        return None
    if module == "torch.Tensor":
        return getattr(torch.Tensor, last, None) if last in METHODS or last in _DUNDER else None
    if module == "operator":
        return getattr(operator, last) if last in OPERATORS else None
    if module == "math":
        return None if last.startswith("_") else getattr(math, last, None)
    if module == "builtins":
        return getattr(builtins, last) if last in BUILTINS else None
    if module in TORCH:
        return _of_torch(module, last)
    if module in OWN:
        found = getattr(importlib.import_module(module), last, None)
        return found if getattr(found, "__module__", "") == module else None
    return None


_DUNDER = frozenset(name for name in dir(torch.Tensor) if name.strip("_") in {n.strip("_") for n in OPERATORS})


def _of_torch(module: str, name: str) -> Any:
    """Returns a function of tensors: one of torch's own table, or of the modules of mathematics."""
    if name.startswith("_") and not hasattr(torch._C._VariableFunctions, name):
        return None
    if module == "torch" and not (hasattr(torch._C._VariableFunctions, name) or name in torch.functional.__all__):
        return None
    found = getattr(importlib.import_module(module), name, None)
    return None if isinstance(found, type) else found


def check_method(name: str) -> str:
    """Returns the name of a method that a program calls.

    Raises:
        InvalidInput: It is none of a tensor's, or one that reaches beyond values.
    """
    if (name not in METHODS and name not in _DUNDER) or name in UNSAFE:
        raise InvalidInput(f"The program calls the method {name}, which no program of this package does.")
    return name


def check_attribute(name: Any) -> None:
    """Refuses to read an attribute that is none of a tensor's.

    Raises:
        InvalidInput: It is not.
    """
    if not isinstance(name, str) or name not in METHODS or name in UNSAFE:
        raise InvalidInput(f"The program reads the attribute {name!r}, which no program of this package does.")
