"""Graphs of a program put one into the other, on a copy of what they call: in eval mode, on the CPU, without grad."""

from __future__ import annotations

import copy
from collections.abc import Iterable, Sequence
from typing import Any

from torch import fx, nn

from tracecompile.exact import exact_value
from tracecompile.operations import operation_of
from tracecompile.program import StepProgram


class Inlined:
    """A graph on its way.

    Attributes:
        program: Whose graphs are put into it.
        graph: The graph.
    """

    def __init__(self, program: StepProgram) -> None:
        self.program, self.graph = program, fx.Graph()
        self._owned: dict[str, Any] = {}

    def take(self, names: Iterable[str]) -> list[fx.Node]:
        """Adds arguments."""
        return [self.graph.placeholder(name) for name in names]

    def put(self, module: fx.GraphModule, given: Sequence[Any]) -> Any:
        """Adds the nodes of a graph on some values, nodes or constants; returns its result.

        A product that was hoisted out of the loop is computed step by step: see ``exact_value``.
        """
        rest = iter(given)
        values: dict[fx.Node, Any] = {}
        for node in module.graph.nodes:
            if node.op == "placeholder":
                values[node] = next(rest)
            elif node.op == "output":
                return fx.map_arg(node.args[0], values.__getitem__)
            elif node.target is exact_value:
                values[node] = values[node.args[0]]
            elif (chosen := _chosen_row(node)) is not None:
                # Of a sequence of any length, of which torch.export cannot make as many tensors as it has steps.
                values[node] = self.graph.call_method("select", (values[chosen[0]], *chosen[1:]))
                values[node].meta = dict(node.meta)
            else:
                values[node] = self.graph.node_copy(node, values.__getitem__)
                if node.op in ("call_module", "get_attr"):
                    self._owned[str(node.target)] = self.program.resolve(str(node.target))
        raise AssertionError("a graph without an output node")

    def module(self, results: Sequence[Any], name: str) -> fx.GraphModule:
        """Returns the module, which takes the arguments that it reads and returns the results as a tuple."""
        self.graph.output(tuple(results))
        self.graph.eliminate_dead_code(is_impure_node=lambda node: node.op in ("placeholder", "output"))
        for node in list(self.graph.nodes):
            if node.op == "placeholder" and not node.users:
                self.graph.erase_node(node)
        return self.as_it_is(name)

    def as_it_is(self, name: str = "Graph") -> fx.GraphModule:
        """Returns the module of a graph that has its output already."""
        used = {str(node.target) for node in self.graph.nodes if node.op in ("call_module", "get_attr")}
        owned = copy.deepcopy({target: value for target, value in self._owned.items() if target in used})
        module = fx.GraphModule({target: _on_cpu(value) for target, value in owned.items()}, self.graph, name)
        return module.eval().requires_grad_(False)


def _chosen_row(node: fx.Node) -> tuple[fx.Node, int, int] | None:
    """Returns (tensor, axis, place) of ``tensor.unbind(axis)[place]``."""
    if operation_of(node).name != "getitem":
        return None
    rows, place = node.args
    if not isinstance(rows, fx.Node) or operation_of(rows).name != "unbind" or not isinstance(place, int):
        return None
    tensor: Any = rows.args[0]
    axis: Any = rows.args[1] if len(rows.args) > 1 else rows.kwargs.get("dim", 0)
    return tensor, axis, place


def arguments_of(module: fx.GraphModule) -> list[str]:
    """Returns the names of what a graph takes."""
    return [node.name for node in module.graph.nodes if node.op == "placeholder"]


def _on_cpu(value: Any) -> Any:
    return value.cpu() if isinstance(value, nn.Module) or hasattr(value, "cpu") else value
