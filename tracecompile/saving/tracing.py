"""Writes functions of tensors down as graphs.

A function is run once by a tracer that knows no values, which keeps it right for tensors of any size and type. Where it
asks for values it is written down in elementary operations, at one size.
"""

from __future__ import annotations

from collections.abc import Callable, Sequence
from typing import Any

import torch
from torch import Tensor, fx
from torch.fx.experimental.proxy_tensor import make_fx

from tracecompile.rules.written import draws_random_numbers

MOST_NUMBERS = 16
"""Elements of a tensor that is written as numbers."""


def by_name(function: Callable[..., Any], names: Sequence[str], size: Sequence[int]) -> fx.GraphModule:
    """Traces a function by the names of the operations that it calls.

    Args:
        function: Of tensors; returns a tensor or several.
        names: Of its arguments.
        size: Not used: the graph is one for all sizes.
    """
    graph = fx.Graph()
    tracer = _Tracer(graph)
    found = function(*(fx.Proxy(graph.placeholder(name), tracer) for name in names))
    graph.output(fx.node.map_aggregate(found, lambda each: each.node if isinstance(each, fx.Proxy) else each))
    return _module(graph)


class _Tracer(fx.proxy.GraphAppendingTracer):
    """Writes tensors that the function makes of numbers as these."""

    def create_arg(self, a: Any) -> Any:
        """See fx."""
        return _made_again(self.graph, a) if isinstance(a, Tensor) else super().create_arg(a)


def _made_again(graph: fx.Graph, value: Tensor) -> fx.Node:
    assert value.numel() <= MOST_NUMBERS, "it holds a table of its own"
    return graph.call_function(torch.tensor, (value.tolist(),), {"dtype": value.dtype})


def by_elements(function: Callable[..., Any], names: Sequence[str], size: Sequence[int]) -> fx.GraphModule:
    """Writes a function down in elementary operations, for arguments of one size."""
    generator = torch.Generator().manual_seed(len(names))
    traced = make_fx(function)(*(torch.randn(tuple(size), generator=generator) for _ in names))
    assert not draws_random_numbers(traced.graph), "it draws random numbers"
    graph = fx.Graph()
    values: dict[fx.Node, fx.Node] = {}
    left = iter(names)
    for node in traced.graph.nodes:
        if node.op == "placeholder":
            values[node] = graph.placeholder(next(left))
        elif node.op == "get_attr":
            values[node] = _made_again(graph, getattr(traced, str(node.target)))
        else:
            values[node] = graph.node_copy(node, values.__getitem__)
    return _module(graph)


def _module(graph: fx.Graph) -> fx.GraphModule:
    graph.eliminate_dead_code()
    graph.lint()
    for node in graph.nodes:
        node.meta.clear()
        node.meta["where"] = None
    return fx.GraphModule({}, graph, "Formula")
