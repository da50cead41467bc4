"""Two graphs are the same, or it is said where they are not."""

from __future__ import annotations

import operator
from collections.abc import Callable

import pytest
import torch
from torch import fx

from tracecompile.passes.compared import difference, returned_by, taken_by

Make = Callable[[fx.Graph, fx.Node, fx.Node], fx.Node]


def graph_of(make: Make) -> fx.GraphModule:
    """Returns a graph over two tensors, with its values."""
    graph = fx.Graph()
    x, y = graph.placeholder("x"), graph.placeholder("y")
    graph.output(make(graph, x, y))
    module = fx.GraphModule({}, graph)
    values = {"x": torch.randn(3, 2), "y": torch.randn(3, 2)}

    class Recording(fx.Interpreter):
        def run_node(self, n: fx.Node) -> object:
            n.meta["val"] = super().run_node(n)
            return n.meta["val"]

    Recording(module).run(*values.values())
    return module


def said(one: Make, other: Make) -> str | None:
    left, right = graph_of(one), graph_of(other)
    known = dict(zip(list(left.graph.nodes)[:2], list(right.graph.nodes)[:2], strict=True))
    return difference([(returned_by(left), returned_by(right))], known)


def add(graph: fx.Graph, x: fx.Node, y: fx.Node) -> fx.Node:
    return graph.call_function(torch.add, (x, y), {"alpha": 2})


def sum_of_draws(graph: fx.Graph, x: fx.Node, y: fx.Node) -> fx.Node:
    one, two = (graph.call_function(torch.rand_like, (x,)) for _ in range(2))
    return graph.call_function(torch.add, (one, two))


def draw_twice(graph: fx.Graph, x: fx.Node, y: fx.Node) -> fx.Node:
    one = graph.call_function(torch.rand_like, (x,))
    return graph.call_function(torch.add, (one, one))


def one_size(graph: fx.Graph, x: fx.Node, y: fx.Node) -> fx.Node:
    size = graph.call_method("size", (x, 0))
    return graph.call_function(torch.add, (graph.call_function(operator.mul, (x, size)), size))


def two_sizes(graph: fx.Graph, x: fx.Node, y: fx.Node) -> fx.Node:
    size, again = (graph.call_method("size", (x, 0)) for _ in range(2))
    return graph.call_function(torch.add, (graph.call_function(operator.mul, (x, size)), again))


@pytest.mark.parametrize("make", [add, sum_of_draws, draw_twice, one_size])
def test_a_graph_is_the_same_as_itself(make: Make) -> None:
    assert said(make, make) is None


def test_a_size_may_be_asked_for_again() -> None:
    assert said(one_size, two_sizes) is None
    assert said(two_sizes, one_size) is None


@pytest.mark.parametrize(
    "other",
    [
        lambda graph, x, y: graph.call_function(torch.add, (y, x), {"alpha": 2}),
        lambda graph, x, y: graph.call_function(torch.add, (x, y), {"alpha": 3}),
        lambda graph, x, y: graph.call_function(torch.add, (x, y)),
        lambda graph, x, y: graph.call_function(torch.sub, (x, y), {"alpha": 2}),
        lambda graph, x, y: graph.call_function(torch.add, (x, x), {"alpha": 2}),
        lambda graph, x, y: graph.call_function(torch.neg, (add(graph, x, y),)),
        lambda graph, x, y: x,
    ],
)
def test_other_operations_and_arguments_are_seen(other: Make) -> None:
    assert said(add, other) is not None
    assert said(other, add) is not None


def test_drawing_once_is_not_drawing_twice() -> None:
    assert said(sum_of_draws, draw_twice) == "rand_like has become rand_like"
    assert said(draw_twice, sum_of_draws) == "rand_like has become rand_like"


def test_what_a_graph_takes_and_returns() -> None:
    module = graph_of(add)
    assert taken_by(module) == ["x", "y"]
    assert returned_by(module).target is torch.add
