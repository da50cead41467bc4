"""Copies of the user's model: capture runs them, never the model."""

from __future__ import annotations

import copy
from collections.abc import Iterator
from typing import Any

import torch
from torch import nn
from torch.utils import _pytree as pytree

from tracecompile.capture.registries import NOTE, registries_of
from tracecompile.capture.step_mode import as_written

MODULE_TABLES = frozenset(nn.Module().__dict__) | {NOTE}


def share_parameters(model: nn.Module) -> nn.Module:
    """Returns a deep copy of a model that holds the very same Parameters.

    A state left over from an earlier call is part of an autograd graph, which cannot be copied: its value is.
    """
    memo: dict[int, Any] = {id(parameter): parameter for parameter in model.parameters()}
    for _, value in tensor_attributes(model):
        if not value.is_leaf and id(value) not in memo:
            memo[id(value)] = value.detach().clone()
    noted = [] if NOTE in vars(model) else registries_of(model)
    copied, in_copy = copy.deepcopy((model, noted), memo)
    if in_copy:
        vars(copied)[NOTE] = in_copy
    return as_written(copied)


def tensor_attributes(model: nn.Module) -> Iterator[tuple[str, torch.Tensor]]:
    """Yields (name, tensor) of everything a model remembers outside its Parameters.

    The name is a dotted path; a tensor within a list, tuple or dict has its key in brackets ("lif.history[1]").
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
            for name, leaf in _leaves(prefix + attribute, value):
                if isinstance(leaf, torch.Tensor) and not isinstance(leaf, nn.Parameter):
                    yield name, leaf


def _leaves(name: str, value: Any) -> Iterator[tuple[str, Any]]:
    if isinstance(value, (list, tuple, dict)):
        for path, leaf in pytree.tree_flatten_with_path(value)[0]:
            yield name + pytree.keystr(path), leaf
    else:
        yield name, value


def replace_attribute(model: nn.Module, name: str, value: Any) -> None:
    """Writes a tensor at a place that `tensor_attributes` named.

    Raises:
        KeyError: The place is inside a tuple or nested container and the container has to be rebuilt instead.
    """
    path, _, attribute = name.partition("[")[0].rpartition(".")
    module = model.get_submodule(path)
    if "[" not in name:
        if attribute in module._buffers:
            module._buffers[attribute] = value
        else:
            setattr(module, attribute, value)
        return
    container = getattr(module, attribute)
    leaves, spec = pytree.tree_flatten_with_path(container)
    key = name[name.index("[") :]
    rebuilt = [value if pytree.keystr(where) == key else leaf for where, leaf in leaves]
    setattr(module, attribute, pytree.tree_unflatten(rebuilt, spec))
