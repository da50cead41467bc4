"""A rate curve as a graph, for the printed text, and the graph that it is read off."""

from __future__ import annotations

from dataclasses import replace
from typing import TYPE_CHECKING, Any, cast

from torch import fx, nn
from torch.fx.proxy import GraphAppendingTracer

from tracecompile.layers import Layer

if TYPE_CHECKING:
    from tracecompile.rules.analytic import RateCurve


def curve_graph(curve: RateCurve) -> fx.GraphModule:
    """Returns what a curve computes, (*currents, *statics) -> outputs, with the core that it is read off inlined."""
    layer, graph = curve.layer, fx.Graph()
    tracer, owned = GraphAppendingTracer(graph), dict[str, nn.Module]()

    def inlined(part: fx.GraphModule | None) -> Any:
        return None if part is None else _Inlined(part, tracer, owned).run

    given = {name: fx.Proxy(graph.placeholder(name), tracer) for name in (*layer.currents, *layer.core_statics)}
    written = replace(curve, layer=replace(layer, core=inlined(layer.core)), drive=inlined(curve.drive))
    outputs = written.mean_outputs(cast("Any", given), cast("Any", given))
    graph.output(tuple(cast("Any", outputs[name]).node for name in layer.outputs))
    module = fx.GraphModule(owned, graph, "Curve")
    module.graph.eliminate_dead_code()
    module.recompile()
    for node in module.graph.nodes:
        if "where" not in node.meta:
            node.meta["pass"] = f"insert_rate_inversion: rate curve of {layer.name}"
    return module


def spike_argument(layer: Layer) -> fx.GraphModule | None:
    """Returns the core's graph cut at the argument of its spike function."""
    assert layer.core is not None
    graph = fx.Graph()
    values: dict[fx.Node, fx.Node] = {}
    for node in layer.core.graph.nodes:
        if node.name == layer.spikes[0]:
            sources = node.all_input_nodes
            if len(sources) != 1:
                return None
            graph.output(values[sources[0]])
            return fx.GraphModule(layer.core, graph, "SpikeArgument")
        values[node] = graph.node_copy(node, values.__getitem__)
    return None


class _Inlined(fx.Interpreter):
    """Writes a graph once more for every time that it is called."""

    def __init__(self, module: fx.GraphModule, tracer: GraphAppendingTracer, owned: dict[str, nn.Module]) -> None:
        super().__init__(module)
        self.tracer, self.owned = tracer, owned

    def run_node(self, n: fx.Node) -> Any:
        found = super().run_node(n)
        if isinstance(found, fx.Proxy) and n.op != "placeholder":
            found.node.meta["where"] = n.meta.get("where")
        return found

    def call_module(self, target: Any, args: tuple[Any, ...], kwargs: dict[str, Any]) -> Any:
        self.owned[str(target)] = self.module.get_submodule(str(target))
        return self.tracer.create_proxy("call_module", target, args, kwargs)
