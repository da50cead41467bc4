"""What the user's own code in a forward does that leaves nothing in a program.

An ``assert`` or a ``raise`` that looks at the sizes of an input was passed when the model was captured. So a model that
has one is asked again at sizes that it has not seen. Autocast changes what operations do, and is none.
"""

from __future__ import annotations

import dis
import sys
from collections.abc import Iterator
from types import CodeType, FunctionType
from typing import Any

import torch
from torch import Tensor, nn
from torch.utils import _pytree as pytree

from tracecompile.capture.copying.copies import share_parameters
from tracecompile.capture.copying.fresh_start import start_afresh
from tracecompile.capture.copying.registries import registries_redirected
from tracecompile.capture.tracing.source import INSTALLED
from tracecompile.capture.tracing.step_numbers import is_users


def has_own_checks(model: nn.Module) -> bool:
    """Tells whether code of the user's that a forward runs may raise something."""
    return any(_raises(function.__code__) for function in _functions(model))


def enters_autocast(model: nn.Module) -> bool:
    """Tells whether code of the user's that a forward runs names ``autocast``."""
    methods = (value for owner in _classes(model) for value in vars(owner).values() if isinstance(value, FunctionType))
    decorated = any(value.__code__.co_name == "decorate_autocast" for value in methods)
    return decorated or any("autocast" in code.co_names for each in _functions(model) for code in _codes(each.__code__))


def after_a_call(model: nn.Module, args: tuple[Any, ...], kwargs: dict[str, Any]) -> nn.Module:
    """Returns a copy of the model as a call without gradients leaves it; nothing of the model or of torch moves.

    Raises:
        Exception: Whatever the model raises.
    """
    copied = share_parameters(model)
    start_afresh(copied)
    devices = {leaf.device for leaf in pytree.tree_leaves((args, kwargs)) if isinstance(leaf, Tensor) and leaf.is_cuda}
    with torch.no_grad(), torch.random.fork_rng(devices=devices), registries_redirected(copied):
        copied(*args, **kwargs)
    return copied


def sizes_of(args: tuple[Any, ...], kwargs: dict[str, Any]) -> tuple[Any, ...]:
    """Returns what such checks look at: shapes of tensors, and whatever is no tensor."""
    leaves = pytree.tree_leaves((args, kwargs))
    return tuple(tuple(leaf.shape) if isinstance(leaf, Tensor) else repr(leaf) for leaf in leaves)


def _functions(model: nn.Module) -> Iterator[FunctionType]:
    """Yields the user's own methods of the model's classes, and the plain functions that they name."""
    waiting: list[Any] = [
        value for owner in _classes(model) for name, value in vars(owner).items() if not name.startswith("__")
    ]
    seen: set[int] = set()
    while waiting:
        function = waiting.pop()
        if not isinstance(function, FunctionType) or id(function) in seen:
            continue
        seen.add(id(function))
        if not _is_own(function.__code__.co_filename):
            continue
        yield function
        waiting += [function.__globals__.get(name) for name in function.__code__.co_names]


def _classes(model: nn.Module) -> list[type]:
    """Returns the user's own classes of a model's modules."""
    bases = dict.fromkeys(base for module in model.modules() for base in type(module).__mro__)
    return [base for base in bases if _is_written(sys.modules.get(base.__module__))]


def _is_written(module: Any) -> bool:
    file = getattr(module, "__file__", None)
    return module is not None and module.__name__ != "builtins" and (file is None or _is_own(file))


def _is_own(file: str) -> bool:
    """Tells whether the user has written a file, and not installed it."""
    return is_users(file) and not INSTALLED.search(file)


def _raises(code: CodeType) -> bool:
    return any(each.opname == "RAISE_VARARGS" for within in _codes(code) for each in dis.get_instructions(within))


def _codes(code: CodeType) -> Iterator[CodeType]:
    """Yields a piece of code, and those within it."""
    yield code
    for constant in code.co_consts:
        if isinstance(constant, CodeType):
            yield from _codes(constant)
