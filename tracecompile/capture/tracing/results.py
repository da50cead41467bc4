"""What a user's forward may return: tensors in tuples, lists, dictionaries, named tuples, dataclasses, namespaces."""

from __future__ import annotations

import dataclasses
from collections.abc import Iterable
from types import SimpleNamespace
from typing import Any

import torch
from torch import nn
from torch.utils import _pytree as pytree

from tracecompile.capture.tracing.source import line_of_forward
from tracecompile.errors import UnsupportedOperation


def open_result(model: nn.Module, result: Any) -> None:
    """Makes the dataclasses and namespaces in a result known to torch, as containers, so that their tensors are found.

    Args:
        model: The model that returned it.
        result: What it returned.

    Raises:
        UnsupportedOperation: There are tensors in an object that cannot be taken apart and put together again.
    """
    for leaf in pytree.tree_leaves(result):
        if isinstance(leaf, (type, torch.Tensor)):
            continue
        if dataclasses.is_dataclass(leaf):
            if type(leaf) not in pytree.SUPPORTED_NODES:  # there may be several of one class
                pytree.register_dataclass(type(leaf))
            open_result(model, leaf)
        elif type(leaf) is SimpleNamespace:
            if SimpleNamespace not in pytree.SUPPORTED_NODES:
                pytree.register_pytree_node(
                    SimpleNamespace, _fields, _namespace, serialized_type_name="types.SimpleNamespace"
                )
            open_result(model, leaf)
        elif any(isinstance(held, torch.Tensor) for held in pytree.tree_leaves(getattr(leaf, "__dict__", {}))):
            raise UnsupportedOperation(
                f"The model returns tensors inside an object of type {type(leaf).__name__}.",
                "Return them in a tuple, a list, a dictionary, a named tuple, a dataclass or a SimpleNamespace.",
                line_of_forward(model),
            )


def _fields(namespace: SimpleNamespace) -> tuple[list[Any], list[str]]:
    return list(vars(namespace).values()), list(vars(namespace))


def _namespace(values: Iterable[Any], names: list[str]) -> SimpleNamespace:
    return SimpleNamespace(**dict(zip(names, values, strict=True)))
