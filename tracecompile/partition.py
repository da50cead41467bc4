"""Extracts local graphs from a step whose cores are known."""

from __future__ import annotations

from collections.abc import Iterable
from typing import Any

from torch import fx

from tracecompile.graph_view import StepView, topological_order
from tracecompile.layers import Core, Layer, LayerKind, Source, StateKind, Statics
from tracecompile.program import StepProgram, final_states_read, is_tensor, static_nodes, step_results
from tracecompile.spikes import reset_style, spike_nodes


class Partition:
    """The layers of one program.

    A *root* is a core, or a junction: a value outside every core that the user, a delay line or several layers read.
    The synapse of a root is the cone of nodes above it up to the values that other roots make.
    """

    def __init__(self, program: StepProgram) -> None:
        self.program = program
        self.view = StepView(program)
        self.node = {node.name: node for node in self.view.nodes}
        self.static = static_nodes(program)
        self.spikes = spike_nodes(program)
        self.inputs = {self.node[x.name] for x in program.inputs}
        self.core_of = {self.node[name]: core for core in program.cores for name in core.nodes}
        self.state_of = {self.node[name]: core for core in program.cores for name in core.states}
        self.junctions = self._required_junctions()
        self._split_shared_cones()

    def layers(self) -> tuple[Layer, ...]:
        """Returns the layers in an order in which each can be computed from those before it."""
        roots: list[Core | fx.Node] = [*self.program.cores, *self.junctions]
        ordered = self._topological(roots)
        names = self._names(ordered)
        return tuple(self._layer(root, name) for root, name in zip(ordered, names, strict=True))

    def statics(self) -> Statics:
        """Returns the graph of everything that does not change over time."""
        wanted = [
            node for node in self.view.nodes if node in self.static and any(u not in self.static for u in node.users)
        ]
        graph, values = fx.Graph(), dict[fx.Node, fx.Node]()
        attributes: list[str] = []
        for node in self.view.nodes:
            if node in self.static and node.op == "get_attr" and str(node.target) not in attributes:
                attributes.append(str(node.target))
        made = {path: graph.placeholder(f"attribute_{i}") for i, path in enumerate(attributes)}
        for name in self.program.invariants:
            values[self.node[name]] = graph.placeholder(name)
        for node in self.view.nodes:
            if node in self.static and node not in values:
                values[node] = (
                    made[str(node.target)] if node.op == "get_attr" else graph.node_copy(node, values.__getitem__)
                )
        graph.output(tuple(values[node] for node in wanted))
        module = self.program.graph_module(graph, "Statics")
        module.graph.eliminate_dead_code()
        module.recompile()
        return Statics(module, tuple(attributes), tuple(node.name for node in wanted))

    # Where the cuts run.

    def _required_junctions(self) -> list[fx.Node]:
        outputs, next_states = step_results(self.program.step)
        read = final_states_read(self.program)
        required = list(outputs) + [node for node, used in zip(next_states, read, strict=True) if used]
        delays = [placeholder for placeholder in self.view.delayed if placeholder not in self.state_of]
        required += [self.view.delayed[placeholder] for placeholder in delays]
        return self._ordered(node for node in required if self._needs_junction(node))

    def _needs_junction(self, node: fx.Node) -> bool:
        is_made = node in self.core_of or node in self.static or node in self.inputs or node in self.view.delayed
        return not is_made and is_tensor(node)

    def _split_shared_cones(self) -> None:
        """Makes a junction of every tensor that the synapses of two roots would both compute."""
        while True:
            owners: dict[fx.Node, int] = {}
            shared: list[fx.Node] = []
            roots: list[Core | fx.Node] = [*self.program.cores, *self.junctions]
            for index, root in enumerate(roots):
                for node in self._cone(root):
                    if owners.setdefault(node, index) != index and is_tensor(node):
                        shared.append(node)
            if not shared:
                return
            self.junctions = self._ordered([*self.junctions, self._ordered(shared)[-1]])

    def _ordered(self, nodes: Iterable[fx.Node]) -> list[fx.Node]:
        return sorted(set(nodes), key=self.view.position.__getitem__)

    def _is_boundary(self, node: fx.Node) -> bool:
        return (
            node in self.core_of
            or node in self.static
            or node in self.inputs
            or node in self.view.delayed
            or node in self.junctions
        )

    def _currents(self, root: Core | fx.Node) -> list[fx.Node]:
        if isinstance(root, fx.Node):
            return [root]
        inside = {self.node[name] for name in (*root.nodes, *root.states)}
        sources = (source for name in root.nodes for source in self.node[name].all_input_nodes)
        return self._ordered(source for source in sources if source not in inside and source not in self.static)

    def _cone(self, root: Core | fx.Node) -> list[fx.Node]:
        """Returns the nodes of a root's synapse, in the order of the step."""
        if isinstance(root, fx.Node):
            found, pending = {root}, list(root.all_input_nodes)
        else:
            found, pending = set(), self._currents(root)
        while pending:
            node = pending.pop()
            if node not in found and not self._is_boundary(node):
                found.add(node)
                pending.extend(node.all_input_nodes)
        return self._ordered(found)

    # Sources and order.

    def _source(self, value: fx.Node) -> Source:
        origin, delay = self.view.origin(value)
        return Source(value.name, origin.name, delay)

    def _sources(self, root: Core | fx.Node) -> list[fx.Node]:
        cone = self._cone(root)
        inside = set(cone)
        read = {source for node in cone for source in node.all_input_nodes}
        if not isinstance(root, fx.Node):
            read |= set(self._currents(root))
        return self._ordered(node for node in read if node not in inside and node not in self.static)

    def _topological(self, roots: list[Core | fx.Node]) -> list[Core | fx.Node]:
        made = {root: i for i, root in enumerate(roots) if isinstance(root, fx.Node)}
        made |= {self.node[name]: i for i, root in enumerate(roots) if isinstance(root, Core) for name in root.nodes}
        edges = [(made[source], i) for i, root in enumerate(roots) for source in self._sources(root) if source in made]

        def first(index: int) -> int:
            root = roots[index]
            return self.view.position[root if isinstance(root, fx.Node) else self.node[root.nodes[0]]]

        return [roots[index] for index in topological_order(edges, len(roots), first)]

    # Local graphs.

    def _layer(self, root: Core | fx.Node, name: str) -> Layer:
        cone, currents = self._cone(root), self._currents(root)
        sources = [self._source(value) for value in self._sources(root)]
        synapse, synapse_statics = self._extract(cone, [s.value for s in sources], tuple(currents))
        states = () if isinstance(root, fx.Node) else root.states
        outputs = self._read_outside(root)
        core: fx.GraphModule | None = None
        core_statics: tuple[str, ...] = ()
        if not isinstance(root, fx.Node):
            next_states = tuple(self.view.delayed[self.node[state]] for state in states)
            taken = [*(current.name for current in currents), *states]
            core, core_statics = self._extract(
                [self.node[node] for node in root.nodes], taken, (tuple(self.node[o] for o in outputs), next_states)
            )
        core_nodes = () if isinstance(root, fx.Node) else root.nodes
        return Layer(
            name=name,
            kind=self._kind(root),
            sources=tuple(sources),
            synapse=synapse,
            synapse_statics=synapse_statics,
            currents=tuple(current.name for current in currents),
            core=core,
            core_statics=core_statics,
            states=states,
            state_kinds=tuple(self._state_kind(root, state) for state in states),
            outputs=outputs,
            spikes=() if isinstance(root, fx.Node) else root.spikes,
            nodes=tuple(node.name for node in cone if is_tensor(node)) + core_nodes,
            reset="none"
            if isinstance(root, fx.Node)
            else reset_style(self.program, [self.node[n] for n in core_nodes], self.spikes),
        )

    def _extract(self, nodes: list[fx.Node], taken: list[str], results: Any) -> tuple[fx.GraphModule, tuple[str, ...]]:
        graph, values = fx.Graph(), dict[fx.Node, fx.Node]()
        for name in taken:
            values[self.node[name]] = graph.placeholder(name)
        needed = {source for node in nodes for source in node.all_input_nodes}
        statics = self._ordered(node for node in needed if node in self.static)
        for node in statics:
            values[node] = graph.placeholder(node.name)
        for node in nodes:
            values[node] = graph.node_copy(node, values.__getitem__)
        graph.output(fx.node.map_arg(results, values.__getitem__))
        for original, copy in values.items():
            copy.meta = dict(original.meta)
        return self.program.graph_module(graph, "Local"), tuple(node.name for node in statics)

    def _read_outside(self, root: Core | fx.Node) -> tuple[str, ...]:
        if isinstance(root, fx.Node):
            return (root.name,)
        inside = set(root.nodes)
        wanted = {node.name for node in self._required_origins()}
        roots: list[Core | fx.Node] = [*self.program.cores, *self.junctions]
        for other in roots:
            if other is not root:
                wanted |= {self._source(value).origin for value in self._sources(other)}
            else:
                wanted |= {s.origin for s in map(self._source, self._sources(other)) if s.delay}
        return tuple(name for name in root.nodes if name in inside and name in wanted)

    def _required_origins(self) -> list[fx.Node]:
        outputs, next_states = step_results(self.program.step)
        read = final_states_read(self.program)
        required = [*outputs, *(node for node, used in zip(next_states, read, strict=True) if used)]
        return [self.node[self._source(node).origin] for node in required if node not in self.static]

    # What to call it.

    def _kind(self, root: Core | fx.Node) -> LayerKind:
        if isinstance(root, fx.Node):
            return "junction"
        if not root.states:
            return "stateless"
        return "spiking" if root.spikes else "readout"

    def _state_kind(self, root: Core | fx.Node, state: str) -> StateKind:
        assert isinstance(root, Core)
        node = self.node[state]
        above = self._above(self.view.delayed[node], set(root.nodes))
        spikes = {self.node[name] for name in root.spikes}
        feeds_spike = any(node in self._above(spike, set(root.nodes)) for spike in spikes)
        currents = set(self._currents(root))
        if not spikes:
            return "membrane" if len(root.states) == 1 or self.view.delayed[node].name == root.nodes[-1] else "current"
        if above & spikes and not above & currents:
            return "adaptation"
        if feeds_spike and (above & spikes or len(root.states) == 1):
            return "membrane"
        return "current" if above & currents and not above & spikes and len(root.states) > 1 else "membrane"

    def _above(self, node: fx.Node, inside: set[str]) -> set[fx.Node]:
        found, pending = {node}, [node]
        while pending:
            for source in pending.pop().all_input_nodes:
                if source not in found:
                    found.add(source)
                    if source.name in inside:
                        pending.append(source)
        return found

    def _names(self, roots: list[Core | fx.Node]) -> list[str]:
        carries = {carry.placeholder: carry.name for carry in self.program.carries}
        names: list[str] = []
        for root in roots:
            node = root if isinstance(root, fx.Node) else self.node[root.nodes[-1]]
            where = node.meta.get("where")
            path = where.module_path if where is not None else ""
            if not path and not isinstance(root, fx.Node) and root.states:
                path = carries[root.states[0]]
            if isinstance(root, fx.Node) and node.op == "call_module":
                path = str(node.target)
            name = path or node.name
            names.append(name if name not in names else f"{name}#{sum(n.split('#')[0] == name for n in names) + 1}")
        return names
