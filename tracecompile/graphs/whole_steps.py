"""One call for all values of a library neuron's step that is kept whole: see ``tracecompile.neuron_step``."""

from __future__ import annotations

import operator
from typing import Any

from torch import fx

from tracecompile.neuron_step import NeuronStep, OpaqueStep


def joined(module: fx.GraphModule) -> fx.GraphModule:
    """Returns the graph with values of one step picked from one call of it; as it is where no step has several.

    Args:
        module: Whose calls make one value each.
    """
    steps = [(node, leaf) for node in module.graph.nodes if isinstance(leaf := called(node), NeuronStep)]
    if not steps:
        return module
    graph, values = fx.Graph(), dict[fx.Node, fx.Node]()
    calls: dict[Any, fx.Node] = {}
    owned: dict[str, Any] = dict(module.named_modules())
    leaves = dict(steps)
    for node in module.graph.nodes:
        if node.op == "output":
            graph.output(fx.map_arg(node.args[0], values.__getitem__))
            continue
        if node not in leaves:
            values[node] = graph.node_copy(node, values.__getitem__)
            continue
        step, key = leaves[node].step, (id(leaves[node].step), node.args)
        if key not in calls:
            target = f"{str(node.target).rpartition('__')[0]}__step"
            owned[target] = step
            calls[key] = graph.call_module(target, fx.map_arg(node.args, values.__getitem__))
            calls[key].meta = {name: value for name, value in node.meta.items() if name != "val"}
        picked = (calls[key], leaves[node].position)
        values[node] = graph.create_node("call_function", operator.getitem, picked, name=node.name)
        values[node].meta = dict(node.meta)
    return fx.GraphModule(owned, graph, type(module).__name__)


def value_of_step(node: fx.Node) -> tuple[OpaqueStep, int, fx.Node] | None:
    """Returns which value of which step a node is, and the node with the step's arguments; None for any other."""
    if isinstance(leaf := called(node), NeuronStep):
        return leaf.step, leaf.position, node
    call = node.args[0] if node.target is operator.getitem else None
    if isinstance(call, fx.Node) and isinstance(step := called(call), OpaqueStep):
        return step, int(str(node.args[1])), call
    return None


def called(node: fx.Node) -> Any:
    """Returns the module that a node calls, None where it calls none or its graph is no module's."""
    owner = node.graph.owning_module
    if node.op != "call_module" or owner is None:
        return None
    return owner.get_submodule(str(node.target))
