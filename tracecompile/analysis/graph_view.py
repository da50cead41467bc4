"""The directed graph of a step with its delay edges: the one place that needs networkx.

An fx graph has no cycles, so it cannot show recurrence. Here every carry closes a cycle from the node that makes the
next state to the placeholder that receives it, and networkx answers the questions that need the cycles. No gradient
comes back through a statistic: it is an input of the step like any other.
"""

from __future__ import annotations

from collections.abc import Callable, Iterable
from typing import TYPE_CHECKING

from torch import fx

from tracecompile.errors import UnsupportedState
from tracecompile.program import StepProgram, step_results

if TYPE_CHECKING:
    import networkx as nx

# networkx takes a quarter of a second to import: it is imported where a model is compiled, not where the package is.


class StepView:
    """Answers questions about the order and the cycles of a step's nodes."""

    def __init__(self, program: StepProgram) -> None:
        import networkx as nx

        graph = program.step.graph
        self.nodes: list[fx.Node] = [node for node in graph.nodes if node.op != "output"]
        self.position = {node: index for index, node in enumerate(self.nodes)}
        placeholders = {node.name: node for node in self.nodes if node.op == "placeholder"}
        next_states = step_results(program.step)[1]
        self.delayed: dict[fx.Node, fx.Node] = {
            placeholders[carry.placeholder]: node
            for carry, node in zip(program.carries, next_states, strict=True)
            if not carry.statistic
        }
        self._now: nx.DiGraph[fx.Node] = nx.DiGraph()
        self._now.add_nodes_from(self.nodes)
        self._now.add_edges_from((source, node) for node in self.nodes for source in node.all_input_nodes)

    def components(self, keep: Callable[[fx.Node], bool]) -> list[tuple[list[fx.Node], bool]]:
        """Strongly connected components, delays included, of the nodes that ``keep`` accepts, each of them convex.

        A cycle that something else crosses within the step (a current from its own spikes, a mean over its neurons) is
        taken apart: whoever reads a state on another side of the crossing than where it is made reads a delayed value.

        Returns:
            (nodes in the order of the step, whether the component is a cycle), in topological order of the step.
        """
        import networkx as nx

        graph = self._with_delays(keep)
        while across := [edge for group in nx.strongly_connected_components(graph) for edge in self._across(group)]:
            graph.remove_edges_from(across)
        groups = [sorted(group, key=self.position.__getitem__) for group in nx.strongly_connected_components(graph)]
        groups = self._in_topological_order(groups)
        return [(group, len(group) > 1 or graph.has_edge(group[0], group[0])) for group in groups]

    def cycles(self, keep: Callable[[fx.Node], bool]) -> list[set[fx.Node]]:
        """Returns the strongly connected components of more than one of the nodes that ``keep`` accepts."""
        import networkx as nx

        return [group for group in nx.strongly_connected_components(self._with_delays(keep)) if len(group) > 1]

    def _with_delays(self, keep: Callable[[fx.Node], bool]) -> nx.DiGraph[fx.Node]:
        kept = [node for node in self.nodes if keep(node)]
        graph: nx.DiGraph[fx.Node] = self._now.subgraph(kept).copy()
        graph.add_edges_from((made, read) for read, made in self.delayed.items() if made in graph and read in graph)
        return graph

    def sides(self, group: set[fx.Node]) -> dict[fx.Node, int]:
        """Returns for the nodes of a cycle how often a path within the step has left it and come back before.

        A node stands as late as its readers allow, so that what only states decide is where these are made. States are
        there when the step begins and have no side.
        """
        earliest: dict[fx.Node, int] = {}
        for node in self.nodes:
            if node.op != "placeholder":
                inside = node in group
                before = [earliest[s] + (inside and s not in group) for s in node.all_input_nodes if s in earliest]
                if before or inside:
                    earliest[node] = max(before, default=0)
        latest: dict[fx.Node, int] = {}
        for node in reversed(self.nodes):
            if node in earliest:
                after = [latest[u] - (u in group and node not in group) for u in node.users if u in latest]
                if after or node in group:
                    latest[node] = min(after, default=earliest[node])
        return {node: side for node, side in latest.items() if node in group}

    def _across(self, group: set[fx.Node]) -> list[tuple[fx.Node, fx.Node]]:
        """Returns the edges from the states of a cycle to who reads them on another side than where they are made."""
        side = self.sides(group)
        if not any(side.values()):
            return []
        states = [state for state in group if state in self.delayed]
        made = {state: side.get(self._made(state)) for state in states}
        return [(s, reader) for s in states for reader in s.users if reader in group and side.get(reader) != made[s]]

    def _made(self, state: fx.Node) -> fx.Node:
        """Returns the node that makes a state, past states that only hand it on."""
        made, seen = self.delayed[state], {state}
        while made in self.delayed and made not in seen:
            seen.add(made)
            made = self.delayed[made]
        return made

    def _in_topological_order(self, groups: list[list[fx.Node]]) -> list[list[fx.Node]]:
        """Orders groups of nodes by what they read within one step, by their last nodes where that leaves a choice.

        The last node alone does not tell: a current may be written back after the membrane that it drives.
        """
        import networkx as nx

        leader = {node: group[0] for group in groups for node in group}
        quotient: nx.DiGraph[fx.Node] = nx.DiGraph()
        quotient.add_nodes_from(leader.get(node, node) for node in self.nodes)
        quotient.add_edges_from((leader.get(one, one), leader.get(two, two)) for one, two in self._now.edges)
        last = {group[0]: self.position[group[-1]] for group in groups}
        condensed = nx.condensation(quotient)
        rank: dict[fx.Node, int] = {}

        def key(part: int) -> int:
            return min(last.get(node, self.position[node]) for node in condensed.nodes[part]["members"])

        for place, part in enumerate(nx.lexicographical_topological_sort(condensed, key=key)):
            rank.update(dict.fromkeys(condensed.nodes[part]["members"], place))
        return sorted(groups, key=lambda group: (rank[group[0]], last[group[0]]))

    def is_convex(self, nodes: Iterable[fx.Node]) -> bool:
        """Tells whether no path within one step leaves the nodes and comes back; states are there when it begins."""
        inside = {node for node in nodes if node.op != "placeholder"}
        after: set[fx.Node] = set()
        for node in self.nodes:
            if node in inside:
                if any(source in after for source in node.all_input_nodes):
                    return False
            elif any(source in inside or source in after for source in node.all_input_nodes):
                after.add(node)
        return True

    def origin(self, value: fx.Node) -> tuple[fx.Node, int]:
        """Follows a value through the carries that only hand it on.

        Returns:
            The node that made it, and how many steps ago.
        """
        origin, delay = value, 0
        while origin in self.delayed:
            origin, delay = self.delayed[origin], delay + 1
            if origin is value:
                raise UnsupportedState(
                    f"The state {value.name} is read but never changes.",
                    "Pass it as an input or a buffer.",
                    value.meta.get("where"),
                )
        return origin, delay


def blocks_of(edges: Iterable[tuple[int, int, int]], count: int) -> list[tuple[tuple[int, ...], bool]]:
    """Groups layers that feed each other, in the order in which the forward pass meets them.

    Args:
        edges: (reader, maker, delay) for every source that a layer reads from a layer.
        count: Number of layers, numbered in the order of the step.

    Returns:
        (indices of the layers, whether they are recurrent) per block, makers before readers.
    """
    import networkx as nx

    graph: nx.DiGraph[int] = nx.DiGraph()
    graph.add_nodes_from(range(count))
    graph.add_edges_from((maker, reader) for reader, maker, _ in edges)
    condensed = nx.condensation(graph)
    order = nx.lexicographical_topological_sort(condensed, key=lambda group: min(condensed.nodes[group]["members"]))
    blocks = []
    for group in order:
        members = tuple(sorted(condensed.nodes[group]["members"]))
        blocks.append((members, len(members) > 1 or graph.has_edge(members[0], members[0])))
    return blocks


def topological_order(edges: Iterable[tuple[int, int]], count: int, key: Callable[[int], int]) -> list[int]:
    """Orders numbers so that the first of every edge comes before the second, the smallest key first where free."""
    import networkx as nx

    graph: nx.DiGraph[int] = nx.DiGraph()
    graph.add_nodes_from(range(count))
    graph.add_edges_from(edges)
    return list(nx.lexicographical_topological_sort(graph, key=key))
