"""Glues the local graphs of layers together in one graph: a step, or what one block does in it."""

from __future__ import annotations

from collections.abc import Callable, Iterable, Mapping
from dataclasses import dataclass
from typing import Any

from torch import fx

from tracecompile.layers import Accrual, Layer
from tracecompile.program import StepProgram, step_results
from tracecompile.rules.norm import batch_statistics

Nodes = tuple[fx.Node, ...]

OF_TRACES = "insert_input_traces: one for each source"
OF_NORMS = "insert_rate_inversion: statistics of the batch, which the layer's backward pass takes as they are"
"""What is said of the lines of the traces, and of those of batch statistics, where they are printed."""


@dataclass(frozen=True)
class CoreLines:
    """What the core of a layer has become.

    Attributes:
        outputs: Of the layer; none for a junction.
        accruals: What it carries, moved on.
        answers, derivatives: As its rule has them.
    """

    outputs: Nodes = ()
    accruals: Nodes = ()
    answers: Nodes = ()
    derivatives: Nodes = ()


class Glue:
    """A graph on its way.

    Attributes:
        graph: The graph.
        made: Its nodes, by the names of those of the step that they stand for.
        owned: What it calls, by target.
        norms: Batch statistics of the normalisations met so far.
    """

    def __init__(self, program: StepProgram) -> None:
        self.program = program
        self.graph = fx.Graph()
        self.made: dict[str, fx.Node] = {}
        self.owned: dict[str, Any] = {}
        self.norms: dict[str, fx.Node] = {}
        following = step_results(program.step)[1]
        self.next = {c.placeholder: node.name for c, node in zip(program.carries, following, strict=True)}

    def take(self, names: Iterable[str]) -> None:
        """Adds arguments, those that are not there yet."""
        for name in names:
            if name not in self.made:
                self.made[name] = self.graph.placeholder(name)

    def synapse(self, layer: Layer, nodes: Iterable[fx.Node], *, count: bool) -> None:
        """Adds some nodes of a synapse, and the batch statistics of its normalisations if they count."""
        for node in nodes:
            if node.op in ("placeholder", "output"):
                continue
            if node.name not in self.made:  # what returns several tensors is of every synapse that reads one of them
                given = {source: self.made[source.name] for source in node.all_input_nodes}
                self.made[node.name] = self._copy(layer.synapse, node, given)
            if count and node.name in layer.norms:
                argument = self.made[node.all_input_nodes[0].name]
                self.norms[node.name] = self.added(OF_NORMS, batch_statistics, argument)

    def core(self, layer: Layer, *, traced: bool) -> CoreLines:
        """Adds a core, with what its rule carries if it is traced."""
        if layer.core is None:
            return CoreLines()
        graph = layer.response.graph if traced and layer.response is not None else None
        names = [*layer.currents, *layer.states, *layer.core_statics]
        names += [accrual.name for accrual in accruals_of(layer)] if graph is not None else []
        result = self._inline(layer.core if graph is None else graph, names)
        (outputs, states), accruals, answers, derivatives = (result, (), (), ()) if graph is None else result
        self.made.update(zip(layer.outputs, outputs, strict=True))
        for state, value in zip(layer.states, states, strict=True):
            self.made.setdefault(self.next[state], value)
        return CoreLines(outputs, accruals, answers, derivatives)

    def _inline(self, module: fx.GraphModule, names: list[str]) -> Any:
        given = iter(names)
        copies: dict[fx.Node, fx.Node] = {}
        for node in module.graph.nodes:
            if node.op == "placeholder":
                copies[node] = self.made[next(given)]
            elif node.op == "output":
                return fx.map_arg(node.args[0], copies.__getitem__)
            else:
                copies[node] = self._copy(module, node, copies)
        raise AssertionError("a graph without an output node")

    def _copy(self, module: fx.GraphModule, node: fx.Node, values: Mapping[fx.Node, fx.Node]) -> fx.Node:
        if node.op in ("call_module", "get_attr"):
            self.owned[str(node.target)] = module.get_submodule(str(node.target))
        return self.graph.node_copy(node, values.__getitem__)

    def added(self, note: str, function: Callable[..., Any], *args: Any) -> fx.Node:
        """Adds a call that a pass has inserted, and what is said of it where it is printed."""
        node = self.graph.call_function(function, args)
        node.meta["pass"] = note
        return node

    def module(self, results: Any, name: str) -> fx.GraphModule:
        """Returns the module of the graph."""
        self.graph.output(results)
        return fx.GraphModule(self.owned, self.graph, name)


def accruals_of(layer: Layer) -> tuple[Accrual, ...]:
    """Returns what the core of a layer carries from step to step."""
    return () if layer.response is None else layer.response.accruals
