"""What has the shape of a state, whatever the batch size."""

from __future__ import annotations

import operator

import torch
from torch import fx

from tracecompile.capture.tracing.build import alike
from tracecompile.exact import exact_value

KEEPS_SHAPE = frozenset({operator.add, operator.sub, operator.mul, operator.truediv, operator.neg, exact_value})
METHODS = frozenset({"detach", "clone", "contiguous"})


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
        if spikes or current.target in KEEPS_SHAPE or current.target in METHODS or current.target is torch.where:
            waiting += current.all_input_nodes
    return found
