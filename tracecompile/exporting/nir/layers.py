"""Layers of torch, as modules or functions, as nodes of NIR."""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence
from typing import Any

import numpy as np
import torch
from torch import Tensor, nn

from tracecompile.exporting.nir.building import array

Shape = tuple[int, ...]
"""Of one sample: of what goes into a layer, and of what comes out."""


class Unsayable(Exception):
    """NIR has no node for something."""


def given(
    names: Sequence[str], module: nn.Module | None, args: Sequence[Any], kwargs: Mapping[str, Any], defaults: Any
) -> dict[str, Any]:
    """Returns what an operation is told, by name: attributes of a module, or arguments of a function."""
    if module is not None:
        return {name: getattr(module, name, default) for name, default in zip(names, defaults, strict=True)}
    found = dict(zip(names, defaults, strict=True)) | dict(zip(names, args[1:], strict=False))
    return found | {name: value for name, value in kwargs.items() if name in found}


def linear(
    module: nn.Module | None, args: Sequence[Any], kwargs: Mapping[str, Any], shape: Shape, result: Shape
) -> Any:
    """Returns the node of a dense layer; None where its input has several axes."""
    import nir

    found = given(("weight", "bias"), module, args, kwargs, (None, None))
    if len(shape) != 1 or not isinstance(found["weight"], Tensor) or found["weight"].dim() != 2:
        return None
    if found["bias"] is None:
        return nir.Linear(weight=array(found["weight"]))
    return nir.Affine(weight=array(found["weight"]), bias=array(found["bias"]))


def convolution(axes: int) -> Callable[..., Any]:
    """Returns what makes the node of a convolution over so many axes."""

    def make(
        module: nn.Module | None, args: Sequence[Any], kwargs: Mapping[str, Any], shape: Shape, result: Shape
    ) -> Any:
        import nir

        names = ("weight", "bias", "stride", "padding", "dilation", "groups")
        found = given(names, module, args, kwargs, (None, None, 1, 0, 1, 1))
        if getattr(module, "padding_mode", "zeros") != "zeros":
            raise Unsayable(f"a convolution with padding_mode={getattr(module, 'padding_mode', '')!r}")
        bias = found["bias"] if found["bias"] is not None else torch.zeros(found["weight"].shape[0])
        kind = nir.Conv1d if axes == 1 else nir.Conv2d
        size: Any = int(shape[-1]) if axes == 1 else tuple(map(int, shape[-axes:]))
        found["padding"] = _padding(found, axes)
        told = {name: sizes(found[name], axes) for name in ("stride", "padding", "dilation")}
        return kind(
            input_shape=size, weight=array(found["weight"]), bias=array(bias), groups=int(found["groups"]), **told
        )

    return make


def _padding(found: Mapping[str, Any], axes: int) -> Any:
    """Returns the padding of a convolution in numbers."""
    if not isinstance(found["padding"], str):
        return found["padding"]
    spread = np.broadcast_to(np.asarray(found["dilation"]), (axes,)) * (np.asarray(found["weight"].shape[2:]) - 1)
    if found["padding"] == "same" and (spread % 2).any():
        raise Unsayable("a padding that is wider on one side")
    return tuple(spread // 2) if found["padding"] == "same" else 0


def sizes(value: Any, axes: int) -> Any:
    """Returns a number per axis, of one axis the number."""
    numbers = tuple(int(each) for each in np.broadcast_to(np.asarray(value, dtype=int), (axes,)))
    return numbers[0] if axes == 1 else numbers


def pooling(
    module: nn.Module | None, args: Sequence[Any], kwargs: Mapping[str, Any], shape: Shape, result: Shape
) -> Any:
    """Returns the node of a mean, or a sum, over windows."""
    import nir

    names = ("kernel_size", "stride", "padding", "ceil_mode", "count_include_pad", "divisor_override")
    found = given(names, module, args, kwargs, (None, None, 0, False, True, None))
    padding = np.asarray(sizes(found["padding"], 2))
    if found["ceil_mode"] or (padding.any() and not found["count_include_pad"]):
        raise Unsayable("a pooling with ceil_mode, or that leaves its padding out of the mean")
    if found["divisor_override"] not in (None, 1):
        raise Unsayable("a pooling with a divisor of its own")
    kernel = np.asarray(sizes(found["kernel_size"], 2))
    stride = kernel if found["stride"] is None else np.asarray(sizes(found["stride"], 2))
    kind = nir.AvgPool2d if found["divisor_override"] is None else nir.SumPool2d
    return kind(kernel_size=kernel, stride=stride, padding=padding)


def flatten(
    module: nn.Module | None, args: Sequence[Any], kwargs: Mapping[str, Any], shape: Shape, result: Shape
) -> Any:
    """Returns the node of a flattening, however it is written; None where it is something else, or nothing."""
    import nir

    trial = torch.empty(2, *shape)
    for first in range(len(shape)):
        for last in range(first + 1, len(shape)):
            if trial.flatten(first + 1, last + 1).shape[1:] == result:
                end = -1 if last == len(shape) - 1 else last
                return nir.Flatten(input_type={"input": np.array(shape)}, start_dim=first, end_dim=end)
    return None


LAYERS: dict[str, Callable[..., Any]] = {
    "linear": linear,
    "conv1d": convolution(1),
    "conv2d": convolution(2),
    "avg_pool2d": pooling,
    "flatten": flatten,
    "reshape": flatten,
    "view": flatten,
}
"""What makes the node of an operation, by its name in the table of operations."""
