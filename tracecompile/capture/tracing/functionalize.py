"""Out-of-place twins of what users write in place.

A step has to be a pure function: an update such as ``self.mem.mul_(beta)`` becomes a new value, and whoever reads the
tensor afterwards reads that value.
"""

from __future__ import annotations

import pkgutil
from collections.abc import Callable
from typing import Any

import torch

from tracecompile.operations import symbol_named


def set_item(tensor: torch.Tensor, index: Any, value: Any) -> torch.Tensor:
    """Returns a copy of a tensor with ``tensor[index] = value``."""
    written = tensor.clone()
    written[index] = value
    return written


def overwrite(tensor: torch.Tensor, value: torch.Tensor) -> torch.Tensor:
    """Returns what ``tensor.copy_(value)`` leaves in the tensor."""
    return value.to(device=tensor.device, dtype=tensor.dtype).expand_as(tensor)


def in_place_on_copy(tensor: torch.Tensor, method: str, *args: Any, **kwargs: Any) -> torch.Tensor:
    """Returns a copy of a tensor with an in-place method applied: for what has no out-of-place twin.

    Args:
        method: Name of a method, or "module:name" of a function that writes its first argument.
    """
    written = tensor.clone()
    function = pkgutil.resolve_name(method) if ":" in method else getattr(torch.Tensor, method)
    function(written, *args, **kwargs)
    return written


def write_through(base: torch.Tensor, value: torch.Tensor, view: str, *args: Any) -> torch.Tensor:
    """Returns a copy of ``base`` in which the part that the method ``view`` shows holds ``value``."""
    written = base.clone()
    getattr(written, view)(*args).copy_(value)
    return written


def is_in_place(name: str) -> bool:
    """Tells whether a tensor method writes its tensor."""
    symbol = symbol_named(name)
    operator = symbol is not None and symbol.in_place
    return operator or name == "__setitem__" or (name.endswith("_") and not name.endswith("__"))


Call = tuple[str, Any, tuple[Any, ...], dict[str, Any]]


def out_of_place(function: Callable[..., Any], name: str, args: tuple[Any, ...], kwargs: dict[str, Any]) -> Call:
    """Returns (op, target, args, kwargs) of the node that stands for an in-place call."""
    if name == "__setitem__":
        return "call_function", set_item, args, kwargs
    if name == "copy_":
        return "call_function", overwrite, args[:2], {}
    if name == "zero_":
        return "call_function", torch.zeros_like, args, kwargs
    if name == "fill_":
        return "call_function", torch.full_like, args, kwargs
    symbol = symbol_named(name)
    if symbol is not None:
        return "call_function", symbol.function, args, kwargs
    if not has_twin(name):
        return on_copy(function, name, args, kwargs)
    return canonical("call_method", name[:-1], args, kwargs)


def has_twin(name: str) -> bool:
    """Tells whether an in-place method has an out-of-place twin; ``bernoulli`` takes its tensor for probabilities."""
    return hasattr(torch.Tensor, name[:-1]) and name != "bernoulli_"


def on_copy(function: Callable[..., Any], name: str, args: tuple[Any, ...], kwargs: dict[str, Any]) -> Call:
    """Returns the node that applies an in-place method, or a function such as those of ``nn.init``, to a copy."""
    method = name if hasattr(torch.Tensor, name) else f"{function.__module__ or 'torch'}:{name}"
    return "call_function", in_place_on_copy, (args[0], method, *args[1:]), kwargs


def canonical(op: str, target: Any, args: tuple[Any, ...], kwargs: dict[str, Any]) -> Call:
    """Spells a call the one way in which the program writes it: ``a.add(b)`` and ``torch.add(a, b)`` are ``a + b``.

    Two idioms of one network give one graph.
    """
    name = target if isinstance(target, str) else getattr(target, "__name__", "")
    from_torch = op == "call_method" or getattr(torch, name, None) is target
    symbol = symbol_named(name)
    if from_torch and symbol is not None and not kwargs and len(args) == symbol.operands:
        return "call_function", symbol.function, args[::-1] if symbol.reflected else args, {}
    return op, target, args, kwargs
