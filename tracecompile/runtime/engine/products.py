"""Products of a compiled scan, laid out as the processor likes them.

A recurrent layer multiplies a few rows by the same transposed weight at every step. Read along its rows, as the
processor's library does best, that takes three quarters of the time: so the weight is turned once per scan. And a
product stays by itself: what is added to it is added in the code between two products, which reads it anyway.
"""

from __future__ import annotations

from typing import Any

import torch
from torch import fx

aten = torch.ops.aten
TURNS = (aten.t.default, aten.transpose.int, aten.permute.default)
PRODUCTS = (aten.mm.default, aten.addmm.default)
ENOUGH = 4
"""Products by one weight from which on turning it comes back."""
APART: dict[str, Any] = {"pattern_matcher": False}
"""Options of inductor under which a product and what is added to it are not made one call again."""


def lay_out_weights(graph: fx.Graph) -> bool:
    """Turns the weights that many products of a graph read the wrong way round, once each, on the processor alone.

    Returns:
        Whether there are any.
    """
    found = False
    for node in list(graph.nodes):
        if node.target not in TURNS or node.args[0].op != "placeholder" or node.meta["val"].device.type != "cpu":
            continue
        products = [user for user in node.users if user.target in PRODUCTS and user.args[-1] is node]
        if len(products) < ENOUGH:
            continue
        with graph.inserting_after(node):
            turned = graph.call_function(aten.clone.default, (node,), {"memory_format": torch.contiguous_format})
        for product in products:
            product.replace_input_with(node, turned)
        found = True
    return found
