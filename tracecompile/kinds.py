"""What kinds of tensors there are: those that nothing here can work with, and what a message says of the others."""

from __future__ import annotations

import inspect
from typing import Any

import torch
from torch import Tensor
from torch.utils import _pytree as pytree

from tracecompile.errors import InvalidInput


def check_kinds(args: tuple[Any, ...], kwargs: dict[str, Any]) -> None:
    """Refuses the arguments of a call if a tensor among them is of a kind that ``check_kind`` refuses."""
    for leaf in pytree.tree_leaves((args, kwargs)):
        if isinstance(leaf, Tensor):
            check_kind("An input", leaf)


def check_kind(name: str, value: Tensor) -> None:
    """Refuses a tensor that does not keep each of its values, as it is, at a place of its own in memory.

    Raises:
        InvalidInput: It is a meta, nested, quantised or sparse tensor, one in a layout of a library, or one of floats
            of eight bits or fewer, in which torch computes next to nothing.
    """
    if value.is_meta:
        raise InvalidInput(f"{name} is a meta tensor: it has a shape, and no values.", "Pass one on a real device.")
    if value.is_nested:
        raise InvalidInput(
            f"{name} is a nested tensor: its samples have lengths of their own.",
            "Pad them to one length with torch.nested.to_padded_tensor.",
        )
    if value.is_quantized:
        raise InvalidInput(f"{name} is quantised ({value.dtype}).", "Pass its dequantize().")
    if value.is_floating_point() and value.dtype.itemsize == 1:
        raise InvalidInput(f"{name} is {value.dtype}, in which torch itself computes little.", "Pass its float().")
    if value.layout != torch.strided:
        kind = "in the layout" if value.layout == torch._mkldnn else "sparse, in the layout"  # type: ignore[attr-defined]
        raise InvalidInput(f"{name} is {kind} {value.layout}.", "Pass it dense: its to_dense().")


def described(arguments: Any) -> str:
    """Returns what some arguments are, for a message: shapes and dtypes of tensors, types of anything else."""
    return ", ".join(_described(leaf) for leaf in pytree.tree_leaves(arguments)) or "nothing"


def _described(leaf: Any) -> str:
    if not isinstance(leaf, Tensor):
        return type(leaf).__name__
    return f"{str(leaf.dtype).removeprefix('torch.')} {list(leaf.shape)}"


def no_fit(signature: inspect.Signature, fault: TypeError) -> InvalidInput:
    """Returns the error for a call that lacks an argument of the model's forward, or has one that it does not know."""
    plain = [each.replace(annotation=each.empty) for each in signature.parameters.values()]
    return InvalidInput(
        f"The call does not fit the model: {fault}.", f"Its forward takes ({', '.join(map(str, plain))})."
    )


def first_line(fault: Exception) -> str:
    """Returns the first line of what torch says, without the full stop that follows it here."""
    return next(iter(str(fault).splitlines()), type(fault).__name__).rstrip(".")
