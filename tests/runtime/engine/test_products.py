"""Weights of recurrent products, turned once a scan."""

from __future__ import annotations

import pytest
import torch
from torch import Tensor, fx
from torch.fx.experimental.proxy_tensor import make_fx
from torch.nn import functional

from tracecompile.runtime.engine import products

aten = torch.ops.aten


def traced(steps: int, bias: bool) -> tuple[fx.GraphModule, list[Tensor]]:
    """Returns a recurrence written out, every turned weight once, and arguments."""
    from torch._functorch.compile_utils import fx_graph_cse

    def run(h: Tensor, weight: Tensor, shift: Tensor) -> Tensor:
        for _ in range(steps):
            h = torch.tanh(functional.linear(h, weight, shift if bias else None))
        return h

    arguments = [torch.randn(3, 5), torch.randn(5, 5), torch.randn(5)]
    graph = make_fx(run, tracing_mode="symbolic")(*arguments)
    graph.graph = fx_graph_cse(graph.graph)
    graph.recompile()
    return graph, arguments


@pytest.mark.parametrize("bias", [False, True])
def test_a_weight_is_turned_once_for_all_steps(bias: bool) -> None:
    graph, arguments = traced(products.ENOUGH, bias)
    expected = graph(*arguments)
    assert products.lay_out_weights(graph.graph)
    graph.graph.lint()
    graph.recompile()
    torch.testing.assert_close(graph(*arguments), expected)
    turned = [node for node in graph.graph.nodes if node.target is aten.clone.default]
    assert len(turned) == 1
    assert len(turned[0].users) == products.ENOUGH
    assert turned[0].args[0].target in products.TURNS


def test_few_products_read_the_weight_as_it_is() -> None:
    graph, _ = traced(products.ENOUGH - 1, True)
    before = str(graph.graph)
    assert not products.lay_out_weights(graph.graph)
    assert str(graph.graph) == before
