"""Copies of the user's model: capture runs them, never the model."""

from __future__ import annotations

import copy
import dataclasses
from collections import deque
from collections.abc import Iterator
from typing import Any

import torch
from torch import nn

from tracecompile.capture.copying.registries import NOTE, registries_of
from tracecompile.capture.tracing.step_mode import as_written
from tracecompile.errors import UnsupportedState

MODULE_TABLES = frozenset(nn.Module().__dict__) | {NOTE}


def share_parameters(model: nn.Module) -> nn.Module:
    """Returns a deep copy of a model that holds the very same Parameters.

    A state left over from an earlier call is part of an autograd graph, which cannot be copied: its value is.
    """
    return independent_copy(model, {id(parameter): parameter for parameter in model.parameters()})


def independent_copy(model: nn.Module, memo: dict[int, Any] | None = None) -> nn.Module:
    """Returns a deep copy of a model that shares nothing but what the memo holds."""
    memo = {} if memo is None else memo
    detach_leftovers(model, memo)
    noted = [] if NOTE in vars(model) else registries_of(model)
    copy_as_they_are(model, memo)
    try:
        copied, in_copy = copy.deepcopy((model, noted), memo)
    except RuntimeError as fault:
        if "deepcopy" not in str(fault):
            raise
        raise UnsupportedState(
            "The model holds a tensor of an earlier autograd graph where it cannot be found: in an object of its own.",
            "Keep states in attributes, lists, tuples, dictionaries, NamedTuples or dataclasses.",
        ) from fault
    if in_copy:
        vars(copied)[NOTE] = in_copy
    return as_written(copied)


def detach_leftovers(model: nn.Module, memo: dict[int, Any]) -> None:
    """Copies, ahead of all others, the tensors of an earlier call: those of an autograd graph or of inference mode."""
    for _, value in tensor_attributes(model):
        if id(value) not in memo and (not value.is_leaf or value.is_inference()):
            memo[id(value)] = value.detach().clone()


def copy_as_they_are(model: nn.Module, memo: dict[int, Any]) -> None:
    """Copies, ahead of all others, the modules of a library whose own ``__deepcopy__`` builds new ones.

    Sinabs' layers do: their copies would forget flags, hooks and shared Parameters.
    """
    rebuilt = [module for module in model.modules() if id(module) not in memo and _rebuilds_itself(module)]
    for module in rebuilt:
        memo[id(module)] = object.__new__(type(module))
    for module in rebuilt:
        memo[id(module)].__dict__.update(copy.deepcopy(vars(module), memo))


def _rebuilds_itself(module: nn.Module) -> bool:
    owner = next((base for base in type(module).__mro__ if "__deepcopy__" in vars(base)), None)
    return owner is not None and owner.__module__.startswith("sinabs.")


def tensor_attributes(model: nn.Module) -> Iterator[tuple[str, torch.Tensor]]:
    """Yields (name, tensor) of everything a model remembers outside its Parameters.

    The name is a dotted path; a tensor within a container has its key in brackets: "lif.history[1]", "state['mem']",
    "state[voltage]" for the field of a NamedTuple or a dataclass.
    """
    for path, module in model.named_modules():
        prefix = f"{path}." if path else ""
        for attribute, value in [*module._buffers.items(), *vars(module).items()]:
            if attribute in MODULE_TABLES:
                continue
            if attribute == "_memories" and isinstance(value, dict):
                # SpikingJelly's states: the module itself gives each out, and takes it, under its own name.
                yield from ((prefix + key, leaf) for key, leaf in value.items() if isinstance(leaf, torch.Tensor))
                continue
            for name, leaf in leaves_of(prefix + attribute, value):
                if not isinstance(leaf, nn.Parameter):
                    yield name, leaf


def plain_attributes(model: nn.Module) -> dict[str, Any]:
    """Returns the numbers, strings and empty places that a model keeps in attributes: counters and flags, say."""
    return {
        f"{path}.{attribute}" if path else attribute: value
        for path, module in model.named_modules()
        for attribute, value in vars(module).items()
        if attribute not in MODULE_TABLES and isinstance(value, (bool, int, float, str))
    }


def leaves_of(name: str, value: Any) -> Iterator[tuple[str, torch.Tensor]]:
    """Yields the tensors within a value by their names, as ``tensor_attributes`` does."""
    if isinstance(value, torch.Tensor):
        yield name, value
    else:
        for key, entry in _entries(value):
            yield from leaves_of(f"{name}[{key}]", entry)


def _entries(value: Any) -> list[tuple[str, Any]]:
    """Returns what a container holds, by key; nothing for what is no container."""
    if isinstance(value, tuple) and hasattr(value, "_fields"):
        return list(zip(value._fields, value, strict=True))
    if isinstance(value, (list, tuple, deque)):
        return [(str(position), entry) for position, entry in enumerate(value)]
    if isinstance(value, dict):
        return [(repr(key), entry) for key, entry in value.items()]
    if dataclasses.is_dataclass(value) and not isinstance(value, type):
        return [(each.name, getattr(value, each.name)) for each in dataclasses.fields(value)]
    return []


def with_leaf(name: str, value: Any, target: str, tensor: torch.Tensor) -> Any:
    """Returns a value with the tensor of one name replaced; containers on the way are made anew."""
    if name == target:
        return tensor
    if not target.startswith(f"{name}["):
        return value
    changed = [with_leaf(f"{name}[{key}]", entry, target, tensor) for key, entry in _entries(value)]
    if isinstance(value, dict):
        again = copy.copy(value)
        again.update(zip(value, changed, strict=True))
        return again
    if isinstance(value, tuple) and hasattr(value, "_fields"):
        return type(value)(*changed)
    if isinstance(value, deque):
        return deque(changed, value.maxlen)
    if isinstance(value, (list, tuple)):
        return type(value)(changed)
    again = copy.copy(value)
    for (field, _), entry in zip(_entries(value), changed, strict=True):
        object.__setattr__(again, field, entry)  # a frozen dataclass too
    return again


def replace_attribute(model: nn.Module, name: str, value: Any) -> None:
    """Writes a tensor at a place that `tensor_attributes` named."""
    path, _, attribute = name.partition("[")[0].rpartition(".")
    module = model.get_submodule(path)
    if attribute in module._buffers:
        module._buffers[attribute] = value
    elif "[" in name:
        start = f"{path}.{attribute}" if path else attribute
        setattr(module, attribute, with_leaf(start, getattr(module, attribute), name, value))
    else:
        setattr(module, attribute, value)
