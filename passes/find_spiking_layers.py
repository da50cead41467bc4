"""Finds the neuron cores of a step: the elementwise recurrences that hold its states, and what spikes."""

from __future__ import annotations

from collections.abc import Mapping
from operator import itemgetter
from typing import ClassVar

from torch import fx

from tracecompile.analysis.crossed import crossed_recurrence
from tracecompile.analysis.graph_view import StepView
from tracecompile.analysis.linearity import operation_name
from tracecompile.analysis.moving import Moving
from tracecompile.analysis.pointwise import is_pointwise
from tracecompile.analysis.sides import with_both_sides
from tracecompile.analysis.spikes import spike_nodes
from tracecompile.analysis.statics import holds_tensors, static_nodes
from tracecompile.errors import NoSpikingLayer, UnsupportedOperation
from tracecompile.layers import Core
from tracecompile.passes.base import Pass
from tracecompile.program import StepProgram, is_tensor
from tracecompile.rules import rule_of


class FindSpikingLayers(Pass):
    """Annotates the program with its cores.

    requires: a captured step.
    ensures: no two cores share a node; every core is convex, so that the step can be computed layer by layer. A core is
        computed neuron by neuron: what is not belongs to a synapse, or to the head, which the user reads. Whatever
        spikes is in a core and called a spike, a surrogate if it does so when it is probed. A state is that of a core
        if it comes back to itself neuron by neuron, with the gate of its reset; any other is a delay line.

        before: cur = fc(x); mem_1 = beta * mem + cur; spk = spike_0(mem_1 - 1.0); mem_2 = mem_1 - spk
        after:  core (mul, mem_1, sub, spk, mem_2) with state mem and spikes (spk,)

    A rule that takes every neuron by itself refuses what comes back to itself in another way, and does not spike.
    Mixing operations (products, convolutions, norms) are taken out of the cyclic graph of the step. What is still
    strongly connected then is a neuron's recurrence; elementwise nodes below it join it up to its spikes. What a random
    number does to a neuron is of its core: a mask on its spikes, noise on its current or its threshold. Where it acts
    on no neuron, such as a mask on an input, it is a core without a state, so that its readers read masked values.
    """

    name: ClassVar[str] = "find_spiking_layers"

    def run(self, program: StepProgram) -> StepProgram:
        """See the class."""
        finder = _CoreFinder(program)
        program = with_both_sides(program, finder.may_join, finder.spikes)
        finder = _CoreFinder(program)
        for nodes, cyclic in finder.view.components(finder.may_join):
            finder.place(nodes, cyclic)
        finder.place_masked()
        cores = finder.cores()
        if rule_of(program.settings).by_neuron:
            _refuse_crossed(program, finder, cores)
        if not finder.view.delayed and not any(core.spikes for core in cores):
            raise NoSpikingLayer(
                "The model keeps no state from one time step to the next and nothing in it spikes.",
                "Convert a model that has at least one neuron with a membrane, or another recurrence over time.",
            )
        return program.evolve(cores=cores)

    def ensures(self, before: StepProgram, after: StepProgram) -> str | None:
        """See the class."""
        finder = _CoreFinder(after)
        nodes = {node.name: node for node in finder.view.nodes}
        named = {name for core in after.cores for name in (*core.nodes, *core.states, *core.spikes)}
        if not named <= nodes.keys():
            return f"cores of nodes that the step lacks: {sorted(named - nodes.keys())}"
        owner: dict[fx.Node, Core] = {}
        for core in after.cores:
            for node in map(nodes.__getitem__, (*core.nodes, *core.states)):
                if is_tensor(node) and owner.setdefault(node, core) is not core:
                    return f"{node.name} is in two cores"
            if not finder.view.is_convex([nodes[name] for name in core.nodes]):
                return f"the core of {core.nodes[-1]} is not convex"
        return _not_of_a_core(finder, owner) or _no_spike(finder, owner) or _in_no_state(finder, owner)


def _refuse_crossed(program: StepProgram, finder: _CoreFinder, cores: tuple[Core, ...]) -> None:
    """Refuses a recurrence without spikes that is not computed neuron by neuron."""
    names = {name for core in cores if core.spikes for name in (*core.nodes, *core.states)}
    spiking = {node for node in finder.view.nodes if node.name in names}
    mixing = crossed_recurrence(program, finder.view, finder.may_join, spiking)
    if mixing is not None:
        raise UnsupportedOperation(
            f"{operation_name(program, mixing)} mixes the units of a state that comes back to it at every step, and "
            f"nothing in between spikes: the {program.settings.rule} rule takes the slope of every unit by itself.",
            'Convert it with rule="exact", which takes any recurrence.',
            mixing.meta.get("where"),
        )


def _not_of_a_core(finder: _CoreFinder, owner: Mapping[fx.Node, Core]) -> str | None:
    """Returns which node of a synapse or a head is in a core."""
    wrong = [node.name for node in owner if not finder.may_join(node)]
    return f"in a core, but not computed neuron by neuron: {wrong}" if wrong else None


def _no_spike(finder: _CoreFinder, owner: Mapping[fx.Node, Core]) -> str | None:
    """Returns what spikes without being called a spike of its core, or the other way round."""
    said = {name for core in owner.values() for name in core.spikes}
    fires = {node.name for node in finder.spikes if finder.may_join(node) and node not in finder.shaping}
    outside = sorted(node.name for node in finder.spikes if node.name in fires and node not in owner)
    if outside:
        return f"what spikes is in no core: {outside}"
    return None if said == fires else f"spikes are {sorted(fires)}, the cores say {sorted(said)}"


def _in_no_state(finder: _CoreFinder, owner: Mapping[fx.Node, Core]) -> str | None:
    """Returns which state comes back to itself neuron by neuron and is not the state of a core, or the other way."""
    states = {name for core in owner.values() for name in core.states}
    for nodes, _ in filter(itemgetter(1), finder.view.components(finder.may_join)):
        members = [node for node in nodes if is_tensor(node)]  # a size may be that of several cores
        if len({id(owner.get(node)) for node in members}) > 1 or members[0] not in owner:
            return f"a recurrence is not that of one core: {[node.name for node in members]}"
        states -= {node.name for node in members if node.op == "placeholder"}
    return f"states of cores that do not come back to themselves: {sorted(states)}" if states else None


class _CoreFinder:
    """Grows cores over the components of a step, in topological order."""

    def __init__(self, program: StepProgram) -> None:
        self.view = StepView(program)
        self.spikes = spike_nodes(program)
        self.static = static_nodes(program)
        self.moving = set(Moving(program).nodes)
        self.pointwise = {node for node in self.view.nodes if is_pointwise(program, node)}
        self.shaping = {node for node in self.view.nodes if node not in self.static and _looks_at_shapes(node)}
        """Sizes, and tensors that are made from sizes alone."""
        self.core_of: dict[fx.Node, int] = {}
        self.members: dict[int, list[fx.Node]] = {}
        self.drawn = self._drawn(program)
        """Random numbers, and what is computed from nothing else that changes over time."""
        self.cut = set(self.spikes)
        """Nodes whose readers do not join the core: spikes, and what is computed from spikes alone."""

    def _drawn(self, program: StepProgram) -> set[fx.Node]:
        found = {node for node in self.view.nodes if node.op == "placeholder" and node.name in program.draws.names}
        for node in self.view.nodes:
            sources = set(node.all_input_nodes) - self.static - self.shaping
            if node in self.pointwise and node not in self.spikes and sources and sources <= found:
                found.add(node)
        return found

    def may_join(self, node: fx.Node) -> bool:
        """Tells whether a node can be part of a core at all."""
        if node in self.moving:
            return False
        return node in self.view.delayed or (node in self.pointwise - self.static) or node in self.shaping

    def place(self, nodes: list[fx.Node], cyclic: bool) -> None:
        """Puts a component into a core of its own, into the one that feeds it, or into none."""
        apart = self.shaping | self.moving | self.drawn
        if not cyclic and (nodes[0].op == "placeholder" or nodes[0] in apart):
            return
        sources = {source for node in nodes for source in node.all_input_nodes} - set(nodes) - self.static - self.drawn
        owners = {self.core_of.get(source) for source in sources}
        feeding = {self.core_of[source] for source in sources if source in self.core_of and source not in self.cut}
        if not cyclic and len(owners) == 1 and None not in owners:
            feeding = {core for core in owners if core is not None}
            if nodes[0] not in self.spikes and sources <= self.cut:
                self.cut.add(nodes[0])
        if feeding and (cyclic or len(feeding) == 1) and self._join(sorted(feeding), nodes):
            return
        if cyclic or nodes[0] in self.spikes:
            self._open(nodes)

    def place_masked(self) -> None:
        """Puts what random numbers meet outside the cores into the core that reads it, or into one of its own."""
        met: set[fx.Node] = set()
        for node in self.view.nodes:
            meets = node in self.drawn or any(source in met or source in self.drawn for source in node.all_input_nodes)
            if meets and node in self.pointwise - self.static - self.moving - self.core_of.keys():
                met.add(node)
        for node in sorted(met, key=self.view.position.__getitem__, reverse=True):
            cores = {self.core_of.get(user) for user in node.users if user not in self.moving}
            (core,) = cores if len(cores) == 1 else (None,)
            if (core is None or not self._join([core], [node])) and node not in self.drawn:
                self._open([node])

    def _join(self, cores: list[int], nodes: list[fx.Node]) -> bool:
        merged = [node for core in cores for node in self.members[core]] + nodes
        if not self.view.is_convex(merged):
            return False
        for core in cores:
            del self.members[core]
        self._open(merged)
        return True

    def _open(self, nodes: list[fx.Node]) -> None:
        number = self.view.position[nodes[-1]]
        self.members[number] = sorted(nodes, key=self.view.position.__getitem__)
        self.core_of.update(dict.fromkeys(nodes, number))

    def cores(self) -> tuple[Core, ...]:
        """Returns the cores found, in the order of the step."""
        return tuple(
            Core(
                nodes=tuple(node.name for node in self._with_numbers(nodes) if node.op != "placeholder"),
                states=tuple(node.name for node in nodes if node.op == "placeholder"),
                spikes=tuple(node.name for node in nodes if node in self.spikes),
            )
            for _, nodes in sorted(self.members.items())
        )

    def _with_numbers(self, nodes: list[fx.Node]) -> list[fx.Node]:
        """Adds the sizes that a core computes with: a number is no current. Several cores may read one."""
        found, waiting = set(nodes), list(nodes)
        while waiting:
            for source in waiting.pop().all_input_nodes:
                if source not in found and source not in self.static and not holds_tensors(source):
                    found.add(source)
                    waiting.append(source)
        return sorted(found, key=self.view.position.__getitem__)


def _looks_at_shapes(node: fx.Node) -> bool:
    """Tells whether a node is a size, or made from sizes alone: the values of tensors have no part in it."""
    if node.op not in ("call_function", "call_method") or not node.all_input_nodes:
        return False
    return not holds_tensors(node) or not any(holds_tensors(source) for source in node.all_input_nodes)
