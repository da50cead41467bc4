"""What has the shape of a state, whatever the batch size, and who asks a tensor for its shape or type alone."""

from __future__ import annotations

import torch
from torch import fx

from tracecompile.capture.tracing.build import alike
from tracecompile.operations import Fact, has


def only_shape_matters(node: fx.Node) -> bool:
    """Tells whether all that is done with a tensor is to make others of its shape or its type."""
    asked = (has(user, Fact.LIKE | Fact.OF_TYPE) or kind_of(user) is node for user in node.users)
    return bool(node.users) and all(asked)


def kind_of(node: fx.Node) -> fx.Node | None:
    """Returns the tensor of which a node takes the type and the device alone, if there is one."""
    if node.op != "call_method":
        return None
    if has(node, Fact.OF_TYPE):
        return node.args[0] if isinstance(node.args[0], fx.Node) else None
    if has(node, Fact.CASTS) and len(node.args) > 1:
        like = node.args[1]
        return like if isinstance(like, fx.Node) and isinstance(like.meta["val"], torch.Tensor) else None
    return None


def same_shape_above(node: fx.Node) -> set[fx.Node]:
    """Returns the nodes above one that have its shape because only elementwise arithmetic lies between.

    A node further up may have the same shape by chance, where the batch is as large as a layer is wide.
    """
    found: set[fx.Node] = set()
    waiting = [node]
    while waiting:
        current = waiting.pop()
        if current in found or not alike(current.meta.get("val"), node.meta["val"]):
            continue
        found.add(current)
        spikes = current.op == "call_module" and str(current.target).startswith("spike_")
        if spikes or has(current, Fact.ELEMENTWISE):
            waiting += current.all_input_nodes[:1] if has(current, Fact.CASTS) else current.all_input_nodes
    return found
