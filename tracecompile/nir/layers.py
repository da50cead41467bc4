"""Stateless nodes of a NIR graph as torch's layers."""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

import numpy as np
import torch
from torch import Tensor, nn


def tensor(value: Any) -> Tensor:
    """Returns numbers of a graph as a tensor of the default dtype."""
    return torch.as_tensor(np.asarray(value), dtype=torch.get_default_dtype())


def pair(value: Any) -> tuple[int, int]:
    """Returns one whole number twice, or two as they are."""
    first, last = np.broadcast_to(np.asarray(value, dtype=int), (2,))
    return int(first), int(last)


def linear(node: Any) -> nn.Module:
    """Returns a dense layer with the weights of a node."""
    bias = getattr(node, "bias", None)
    layer = nn.Linear(node.weight.shape[1], node.weight.shape[0], bias=bias is not None)
    return filled(layer, node.weight, bias)


def convolution(kind: type[nn.Module], axes: int) -> Callable[[Any], nn.Module]:
    """Returns what makes a convolution over so many axes of a node."""

    def sizes(value: Any) -> Any:
        if isinstance(value, str):
            return value
        return tuple(int(each) for each in np.broadcast_to(np.asarray(value, dtype=int), (axes,)))

    def make(node: Any) -> nn.Module:
        layer = kind(
            node.weight.shape[1] * int(node.groups),
            node.weight.shape[0],
            tuple(node.weight.shape[2:]),
            stride=sizes(node.stride),
            padding=sizes(node.padding),
            dilation=sizes(node.dilation),
            groups=int(node.groups),
            bias=node.bias is not None,
        )
        return filled(layer, node.weight, node.bias)

    return make


def filled(layer: Any, weight: Any, bias: Any) -> nn.Module:
    """Returns a layer with the given weights."""
    with torch.no_grad():
        layer.weight.copy_(tensor(weight))
        if bias is not None:
            layer.bias.copy_(tensor(bias))
    made: nn.Module = layer
    return made


def flatten(node: Any) -> nn.Module:
    """Returns what flattens each sample."""
    # NIR counts the axes of one sample; the batch comes before them.
    return nn.Flatten(*(axis + 1 if axis >= 0 else axis for axis in (int(node.start_dim), int(node.end_dim))))
