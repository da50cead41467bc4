"""What part each state of a neuron plays: told from what its next value reads and from how it moves the spikes."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass
from typing import Any

import torch
from torch import fx

from tracecompile.analysis.cuts import Cuts, Root
from tracecompile.analysis.pointwise import is_comparison
from tracecompile.analysis.signs import agreed, apart, leaves_at, signs_of
from tracecompile.layers import Core, StateKind
from tracecompile.operations import SHAPE_ONLY, has, operation_of
from tracecompile.program import example_value, is_tensor

FALLING = ("lt", "le")
"""Comparisons that a larger first operand makes false."""

EXTREMES = ("maximum", "minimum")
"""What only keeps the largest or the smallest value of another state."""

POINTS = 3
"""Where a derivative is asked for its sign: on the example, and beside it."""


def state_kinds(cuts: Cuts, root: Root) -> tuple[StateKind, ...]:
    """Returns what each state of a root is.

    A membrane is what spikes come from, or what a readout adds up. A synaptic current leads to a membrane and does not
    come from it. An adaptation is driven by the neuron's own spikes or its membrane, and keeps it from spiking; it is
    an adaptive threshold where it leaves the membrane alone while nothing spikes. A refractory counter is set by a
    spike, counts by ones or the like, and does no more than close and open a gate. Spikes that are handed on to the
    next step are called so. What is none of these, or not so everywhere, is a state, and no more is said of it.
    """
    if isinstance(root, fx.Node) or not root.states:
        return ()
    core = _States(cuts, root)
    kind = core.kind_in_neuron if root.spikes else core.kind_in_readout
    return tuple(kind(cuts.node[name]) for name in root.states)


@dataclass(frozen=True)
class _Reads:
    """What a value is computed from within a step, back to spikes: whether currents, whether spikes, which states."""

    currents: bool
    spikes: bool
    states: frozenset[fx.Node]

    @property
    def of_spikes_alone(self) -> bool:
        """Whether it is spikes that are handed on, scaled as they may be."""
        return self.spikes and not self.currents and not self.states


class _States:
    """The states of a core, but for spikes that are handed on."""

    def __init__(self, cuts: Cuts, root: Core) -> None:
        self.cuts = cuts
        self.nodes = [cuts.node[name] for name in root.nodes]
        self.spikes = {cuts.node[name] for name in root.spikes}
        self.driven = bool(cuts.currents(root))
        self.late: set[fx.Node] = set()
        self.following = {cuts.node[name]: cuts.view.delayed[cuts.node[name]] for name in root.states}
        self.reads = {state: self._reads(made) for state, made in self.following.items()}
        while late := {state for state, reads in self.reads.items() if reads.of_spikes_alone}:
            self.late |= late
            self.following = {state: made for state, made in self.following.items() if state not in late}
            self.reads = {state: self._reads(made) for state, made in self.following.items()}
        self.leads = {state: self._leads(state) for state in self.following}
        several = bool(root.spikes) and len(self.following) > 1
        self.points = [leaves_at(self.following, point) for point in range(POINTS)] if several else []
        self.pushes = self._pushes() if several else {}

    def kind_in_neuron(self, state: fx.Node) -> StateKind:
        """Tells the part of a state where the core spikes."""
        if state in self.late:
            return "spikes"
        if self._only_gates(state):
            return "refractory counter" if self._counts(state) else "state"
        before = [other for other in self.following if other is state or state in self.leads[other]]
        push = self.pushes.get(state, 0.0)
        if self.driven and not any(self.reads[other].currents for other in before):
            driven = any(self.reads[other].spikes for other in before)
            return self._adaptation(state) if driven and push < 0 and self._feeds_spikes(state) else "state"
        if len(self.following) == 1:
            return "membrane"
        if push < 0:
            of_its_own = not self.reads[state].spikes and self.reads[state].states <= {state}
            return "synaptic current" if of_its_own else self._adaptation(state)
        if push > 0:
            upward = [other for other in self.leads[state] if self.pushes[other] > 0]
            return "synaptic current" if any(state not in self.leads[other] for other in upward) else "membrane"
        return "state"

    def kind_in_readout(self, state: fx.Node) -> StateKind:
        """Tells the part of a state where nothing spikes."""
        watching = {other for other, made in self.following.items() if operation_of(made).name in EXTREMES}
        if state in watching:
            return "state"
        beyond = [other for other in self.leads[state] - watching if state not in self.leads[other]]
        return "synaptic current" if beyond else "membrane"

    def _adaptation(self, state: fx.Node) -> StateKind:
        """Tells a threshold from what pulls at the membrane: with no spike about, it does not move any other state."""
        try:
            found = [self._values(leaves, quiet=True) for leaves in self.points]
            moved = [
                signs_of([values[made]], leaves)[state]
                for values, leaves in zip(found, self.points, strict=True)
                for other, made in self.following.items()
                if other is not state and self.pushes.get(other, 0.0) > 0 and made in values
            ]
        except (RuntimeError, TypeError, ValueError):
            return "adaptation"
        return "adaptation" if not moved or any(moved) else "adaptive threshold"

    def _only_gates(self, state: fx.Node) -> bool:
        """Tells whether a state that spikes set is asked for no more than whether a gate is open."""
        reads = self.reads[state]
        ends = {made for other, made in self.following.items() if other is not state} | self.spikes
        return reads.spikes and not reads.currents and reads.states <= {state} and self._gates(state, ends)

    def _counts(self, state: fx.Node) -> bool:
        """Tells whether a state moves by equal steps, whatever it is, while nothing spikes."""
        steps = []
        for level in (5, 7):
            leaves = {**self.points[0], state: torch.full_like(example_value(state), level)}
            try:
                made = self._values(leaves, quiet=True)[self.following[state]]
            except (RuntimeError, TypeError, ValueError, KeyError):
                return False  # it only names them
            steps.append((made.detach().double() - level).unique().tolist())
        return len(steps[0]) == 1 and steps[0] == steps[1] and steps[0][0] != 0

    def _gates(self, state: fx.Node, ends: set[fx.Node]) -> bool:
        """Tells whether a state reaches some nodes, and through comparisons of itself with a constant alone."""
        inside, found, waiting, gates = set(self.nodes), set[fx.Node](), list(ends), False
        while waiting:
            node = waiting.pop()
            if node in found:
                continue
            found.add(node)
            if node is state:
                return False
            if is_comparison(node) and state in node.all_input_nodes:
                if any(source is not state and is_tensor(source) for source in node.all_input_nodes):
                    return False
                gates = True
            elif node in inside and not (has(node, SHAPE_ONLY) and node not in ends):
                waiting += node.all_input_nodes
        return gates

    def _reads(self, value: fx.Node) -> _Reads:
        inside, found, waiting = set(self.nodes), set[fx.Node](), [value]
        currents = spikes = False
        while waiting:
            node = waiting.pop()
            if node in found or node in self.cuts.static or not is_tensor(node):
                continue
            found.add(node)
            if node in self.spikes or node in self.late or is_comparison(node):
                spikes = True
            elif node in inside:
                waiting += [] if has(node, SHAPE_ONLY) else node.all_input_nodes
            elif node not in self.following:
                currents = True
        return _Reads(currents, spikes, frozenset(found & set(self.following)))

    def _leads(self, state: fx.Node) -> set[fx.Node]:
        """Returns the states that a state moves, at whatever later step."""
        found, waiting = set[fx.Node](), [state]
        while waiting:
            last = waiting.pop()
            fresh = {other for other, reads in self.reads.items() if last in reads.states} - found
            found |= fresh
            waiting += fresh
        return found

    def _arguments(self) -> list[tuple[fx.Node, int]]:
        """Returns what is compared where spikes begin, with the sign by which more of it makes a spike."""
        found: list[tuple[fx.Node, int]] = []
        for node in self.nodes:
            if node in self.spikes and not self.spikes.intersection(node.all_input_nodes):
                for made in [source for source in node.all_input_nodes if is_comparison(source)] or [node]:
                    operands = made.args[:2] if made.op != "call_module" else made.args[:1]
                    sign = -1 if operation_of(made).name in FALLING else 1
                    signed = zip(operands, (sign, -sign), strict=False)
                    found += [(operand, each) for operand, each in signed if isinstance(operand, fx.Node)]
        return found

    def _feeds_spikes(self, state: fx.Node) -> bool:
        compared = {read for argument, _ in self._arguments() for read in self._reads(argument).states}
        return bool(compared & {state, *self.leads[state]})

    def _pushes(self) -> dict[fx.Node, float]:
        """Returns for each state whether more of it makes spikes come sooner (1) or later (-1); 0 where it cannot tell.

        Its derivative tells, on the example and beside it: that of what is compared, or else that of a state which is
        compared later. One that has not the same sign for every neuron and everywhere tells nothing.
        """
        try:
            found = [self._pushes_at(leaves) for leaves in self.points]
        except (RuntimeError, TypeError, ValueError):
            return dict.fromkeys(self.following, 0.0)  # it only names them
        return {state: agreed([pushes[state] for pushes in found]) for state in self.following}

    def _pushes_at(self, leaves: Mapping[fx.Node, Any]) -> dict[fx.Node, float]:
        values = self._values(leaves)
        compared = [sign * values[node] for node, sign in self._arguments() if node in values]
        pushes = signs_of(compared, leaves)
        moved = {state: signs_of([values[made]], leaves) for state, made in self.following.items() if made in values}
        for _ in self.following:
            for state in [state for state, push in pushes.items() if not push]:
                later = [pushes[other] * signs[state] for other, signs in moved.items() if other is not state]
                pushes[state] = next((sign for sign in later if sign), 0.0)
        # A neuron may as well spike where its membrane is low.
        return pushes if max(pushes.values()) > 0 else {state: -push for state, push in pushes.items()}

    def _values(self, leaves: Mapping[fx.Node, Any], quiet: bool = False) -> dict[fx.Node, Any]:
        """Computes the core on the example from other states; nothing leads back through a spike.

        Args:
            leaves: The states.
            quiet: Whether nothing spikes, and nothing did.
        """
        step = fx.Interpreter(self.cuts.program.step, garbage_collect_values=False)
        values = step.env = dict(leaves)
        with torch.enable_grad(), torch.random.fork_rng(devices=[]):
            for node in self.nodes:
                for source in node.all_input_nodes:
                    if source not in values:
                        value = apart(example_value(source))
                        values[source] = torch.zeros_like(value) if quiet and source in self.late else value
                made = step.run_node(node)
                values[node] = made if node not in self.spikes else torch.zeros_like(made) if quiet else apart(made)
        return values
