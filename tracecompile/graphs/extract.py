"""Extracts the local graphs of a step whose cuts are known."""

from __future__ import annotations

from typing import Any

from torch import fx

from tracecompile.analysis.cuts import Cuts, Root
from tracecompile.analysis.naming import layer_kind, layer_names
from tracecompile.analysis.roles import state_kinds
from tracecompile.analysis.spikes import reset_style, spike_nodes
from tracecompile.layers import Layer, StateKind, Statics
from tracecompile.program import StepProgram, is_tensor


def extract_layers(program: StepProgram) -> tuple[Layer, ...]:
    """Returns the layers in an order in which each can be computed from those before it."""
    cuts = Cuts(program)
    spikes = spike_nodes(program)
    kinds = [state_kinds(cuts, root) for root in cuts.roots]
    named = zip(cuts.roots, layer_names(cuts, kinds), kinds, strict=True)
    return tuple(_layer(cuts, root, name, spikes, parts) for root, name, parts in named)


def extract_statics(program: StepProgram) -> Statics:
    """Returns the graph of everything that does not change over time."""
    cuts = Cuts(program)
    wanted = [node for node in cuts.view.nodes if node in cuts.static and any(u not in cuts.static for u in node.users)]
    graph, values = fx.Graph(), dict[fx.Node, fx.Node]()
    attributes: list[str] = []
    for node in cuts.view.nodes:
        if node in cuts.static and node.op == "get_attr" and str(node.target) not in attributes:
            attributes.append(str(node.target))
    made = {path: graph.placeholder(f"attribute_{i}") for i, path in enumerate(attributes)}
    for name in program.invariants:
        values[cuts.node[name]] = graph.placeholder(name)
    for node in cuts.view.nodes:
        if node in cuts.static and node not in values:
            values[node] = (
                made[str(node.target)] if node.op == "get_attr" else graph.node_copy(node, values.__getitem__)
            )
    graph.output(tuple(values[node] for node in wanted))
    module = program.graph_module(graph, "Statics")
    module.graph.eliminate_dead_code()
    module.recompile()
    return Statics(module, tuple(attributes), tuple(node.name for node in wanted))


def _layer(cuts: Cuts, root: Root, name: str, spikes: set[fx.Node], kinds: tuple[StateKind, ...]) -> Layer:
    cone, currents = cuts.cone(root), cuts.currents(root)
    sources = [cuts.source(value) for value in cuts.sources(root)]
    synapse, synapse_statics = _extract(cuts, cone, [s.value for s in sources], tuple(currents), cuts.static)
    states = () if isinstance(root, fx.Node) else root.states
    outputs = cuts.read_outside(root)
    core: fx.GraphModule | None = None
    core_statics: tuple[str, ...] = ()
    if not isinstance(root, fx.Node):
        next_states = tuple(cuts.view.delayed[cuts.node[state]] for state in states)
        taken = [*(current.name for current in currents), *states]
        core, core_statics = _extract(
            cuts,
            [cuts.node[node] for node in root.nodes],
            taken,
            (tuple(cuts.node[o] for o in outputs), next_states),
            cuts.static | cuts.drawn,
        )
    core_nodes = () if isinstance(root, fx.Node) else root.nodes
    return Layer(
        name=name,
        kind=layer_kind(root),
        sources=tuple(sources),
        synapse=synapse,
        synapse_statics=synapse_statics,
        currents=tuple(current.name for current in currents),
        core=core,
        core_statics=core_statics,
        states=states,
        state_kinds=kinds,
        outputs=outputs,
        spikes=() if isinstance(root, fx.Node) else root.spikes,
        nodes=tuple(node.name for node in (*cone, *map(cuts.node.__getitem__, core_nodes)) if is_tensor(node)),
        reset="none"
        if isinstance(root, fx.Node)
        else reset_style(cuts.program, [cuts.node[n] for n in core_nodes], spikes),
    )


def _extract(
    cuts: Cuts, nodes: list[fx.Node], taken: list[str], results: Any, given: set[fx.Node]
) -> tuple[fx.GraphModule, tuple[str, ...]]:
    graph, values = fx.Graph(), dict[fx.Node, fx.Node]()
    for name in taken:
        values[cuts.node[name]] = graph.placeholder(name)
    needed = {source for node in nodes for source in node.all_input_nodes}
    statics = cuts.ordered(node for node in needed if node in given)
    for node in statics:
        values[node] = graph.placeholder(node.name)
    for node in nodes:
        values[node] = graph.node_copy(node, values.__getitem__)
    graph.output(fx.node.map_arg(results, values.__getitem__))
    for original, copy in values.items():
        copy.meta = dict(original.meta)
    return cuts.program.graph_module(graph, "Local"), tuple(node.name for node in statics)
