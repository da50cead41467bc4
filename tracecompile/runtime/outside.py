"""What a user does around a call of a net: transforms that it refuses, and hooks that its own work must not meet."""

from __future__ import annotations

from collections.abc import Iterator
from contextlib import contextmanager
from typing import Any

import torch
from torch import Tensor, nn
from torch.autograd import forward_ad
from torch.utils import _pytree as pytree

from tracecompile.errors import UnsupportedOperation
from tracecompile.parallel import refuse_synchronised


def refuse_transforms(module: nn.Module, args: tuple[Any, ...], kwargs: dict[str, Any]) -> None:
    """Refuses a call in forward-mode differentiation, within a transform of torch.func, or that processes make as one.

    Raises:
        UnsupportedOperation: An argument or a parameter has a tangent, or stands for what a transform runs over, or the
            model takes statistics of all processes.
    """
    refuse_synchronised(module)
    if torch.jit._trace.is_tracing() or torch.compiler.is_exporting():
        raise UnsupportedOperation(
            "A converted module cannot be traced or exported: its loop over time would be written out.",
            "Export the model itself, or keep the converted module with tracecompile.save.",
        )
    if forward_ad._current_level < 0 and torch._C._functorch.peek_interpreter_stack() is None:
        return
    given = [leaf for leaf in pytree.tree_leaves((args, kwargs)) if isinstance(leaf, Tensor)]
    for value in (*given, *module.parameters(), *module.buffers()):
        if torch._C._functorch.is_functorch_wrapped_tensor(value):
            raise UnsupportedOperation(
                "A converted module cannot run within torch.func.grad, vmap, jvp or another transform of torch.func.",
                "Call it on the whole batch and use loss.backward() or torch.autograd.grad, or transform the model.",
            )
        if forward_ad.unpack_dual(value).tangent is not None:
            raise UnsupportedOperation(
                "A converted module has no forward-mode derivative: its tangents would be lost.",
                "Use loss.backward() or torch.autograd.grad, or run the model itself.",
            )


@contextmanager
def unseen() -> Iterator[None]:
    """Keeps what autograd saves for work within a call from hooks of the user's, such as those of a checkpoint."""
    # Detached: a result that autograd saves would lead to itself, and neither would ever be freed.
    with torch.autograd.graph.saved_tensors_hooks(lambda tensor: tensor.detach(), lambda tensor: tensor):
        yield
