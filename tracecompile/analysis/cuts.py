"""Where a step is cut into layers."""

from __future__ import annotations

from collections.abc import Iterable

from torch import fx

from tracecompile.analysis.graph_view import StepView, topological_order
from tracecompile.analysis.moving import Moving
from tracecompile.analysis.statics import static_nodes
from tracecompile.layers import Core, Source
from tracecompile.program import StepProgram, final_states_read, is_tensor, step_results

Root = Core | fx.Node
"""What a layer grows from: a core, or a junction, which is a value outside every core that the user, a delay line or
several layers read."""


class Cuts:
    """The roots of a program's layers, and what lies above each.

    The synapse of a root is the cone of nodes above it up to the values that other roots make.

    Attributes:
        node: Nodes of the step by name.
        static: Nodes that do not change over time.
        drawn: Arguments of the step that are random numbers. A core takes them as they are; a synapse that reads them
            has them among its sources.
        roots: In an order in which each can be computed from those before it.
    """

    def __init__(self, program: StepProgram) -> None:
        """Finds the cuts of a program whose cores are known."""
        self.program = program
        self.view = StepView(program)
        self.node = {node.name: node for node in self.view.nodes}
        self.static = static_nodes(program)
        self.drawn = {self.node[name] for name in program.draws.names}
        self._inputs = {self.node[x.name] for x in program.inputs} | self.drawn
        self._inputs |= {self.node[carry.placeholder] for carry in program.carries if carry.statistic}
        self.moving = Moving(program)
        self._core_of = {
            self.node[name]: core for core in program.cores for name in core.nodes if is_tensor(self.node[name])
        }
        self._state_of = {self.node[name]: core for core in program.cores for name in core.states}
        self._junctions = self._required_junctions()
        self._split_shared_cones()
        self.roots = self._topological([*program.cores, *self._junctions])

    def _required_junctions(self) -> list[fx.Node]:
        outputs, next_states = step_results(self.program.step)
        read = final_states_read(self.program)
        required = list(outputs) + [node for node, used in zip(next_states, read, strict=True) if used]
        required += self.moving.read
        delays = [placeholder for placeholder in self.view.delayed if placeholder not in self._state_of]
        required += [self.view.delayed[placeholder] for placeholder in delays]
        return self.ordered(node for node in required if self._needs_junction(node))

    def _needs_junction(self, node: fx.Node) -> bool:
        is_made = node in self._core_of or node in self.static or node in self._inputs or node in self.view.delayed
        return not is_made and is_tensor(node)

    def _split_shared_cones(self) -> None:
        """Makes a junction of every tensor that the synapses of two roots would both compute."""
        while True:
            owners: dict[fx.Node, int] = {}
            shared: list[fx.Node] = []
            roots: list[Root] = [*self.program.cores, *self._junctions]
            for index, root in enumerate(roots):
                for node in self.cone(root):
                    if owners.setdefault(node, index) != index and is_tensor(node):
                        shared.append(node)
            if not shared:
                return
            self._junctions = self.ordered([*self._junctions, self.ordered(shared)[-1]])

    def ordered(self, nodes: Iterable[fx.Node]) -> list[fx.Node]:
        """Returns nodes, each once, in the order of the step."""
        return sorted(set(nodes), key=self.view.position.__getitem__)

    def _is_boundary(self, node: fx.Node) -> bool:
        return (
            node in self._core_of
            or node in self.static
            or node in self._inputs
            or node in self.view.delayed
            or node in self._junctions
        )

    def currents(self, root: Root) -> list[fx.Node]:
        """Returns the nodes through which a root's synapse enters it."""
        if isinstance(root, fx.Node):
            return [root]
        inside = {self.node[name] for name in (*root.nodes, *root.states)} | self.drawn
        sources = (source for name in root.nodes for source in self.node[name].all_input_nodes)
        return self.ordered(source for source in sources if source not in inside and source not in self.static)

    def cone(self, root: Root) -> list[fx.Node]:
        """Returns the nodes of a root's synapse, in the order of the step."""
        if isinstance(root, fx.Node):
            found, pending = {root}, list(root.all_input_nodes)
        else:
            found, pending = set(), self.currents(root)
        while pending:
            node = pending.pop()
            if node not in found and not self._is_boundary(node):
                found.add(node)
                pending.extend(node.all_input_nodes)
        return self.ordered(found)

    def source(self, value: fx.Node) -> Source:
        """Returns where a value that a synapse reads comes from."""
        origin, delay = self.view.origin(value)
        return Source(value.name, origin.name, delay)

    def sources(self, root: Root) -> list[fx.Node]:
        """Returns the values that a root's synapse reads, without the static ones."""
        cone = self.cone(root)
        inside = set(cone)
        read = {source for node in cone for source in node.all_input_nodes}
        if not isinstance(root, fx.Node):
            read |= set(self.currents(root))
        return self.ordered(node for node in read if node not in inside and node not in self.static)

    def _topological(self, roots: list[Root]) -> list[Root]:
        made = {root: i for i, root in enumerate(roots) if isinstance(root, fx.Node)}
        made |= {self.node[name]: i for i, root in enumerate(roots) if isinstance(root, Core) for name in root.nodes}
        edges = [(made[source], i) for i, root in enumerate(roots) for source in self.sources(root) if source in made]

        def first(index: int) -> int:
            root = roots[index]
            return self.view.position[root if isinstance(root, fx.Node) else self.node[root.nodes[0]]]

        return [roots[index] for index in topological_order(edges, len(roots), first)]

    def read_outside(self, root: Root) -> tuple[str, ...]:
        """Returns the nodes of a root that another root, its own synapse (delayed) or the user reads."""
        if isinstance(root, fx.Node):
            return (root.name,)
        inside = set(root.nodes)
        wanted = {node.name for node in self._required_origins()}
        roots: list[Root] = [*self.program.cores, *self._junctions]
        for other in roots:
            if other is not root:
                wanted |= {self.source(value).origin for value in self.sources(other)}
            else:
                wanted |= {s.origin for s in map(self.source, self.sources(other)) if s.delay}
        return tuple(name for name in root.nodes if name in inside and name in wanted)

    def _required_origins(self) -> list[fx.Node]:
        outputs, next_states = step_results(self.program.step)
        read = final_states_read(self.program)
        required = [*outputs, *(node for node, used in zip(next_states, read, strict=True) if used)]
        required += self.moving.read
        return [self.node[self.source(node).origin] for node in required if node not in self.static]
