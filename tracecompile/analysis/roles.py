"""What part each state of a neuron plays: told from what its next value reads and from how it moves the spikes."""

from __future__ import annotations

from collections.abc import Iterable, Mapping
from dataclasses import dataclass
from typing import Any

import torch
from torch import Tensor, fx

from tracecompile.analysis.cuts import Cuts, Root
from tracecompile.analysis.pointwise import is_comparison
from tracecompile.layers import Core, StateKind
from tracecompile.operations import SHAPE_ONLY, has, operation_of
from tracecompile.program import example_value, is_tensor

FALLING = ("lt", "le")
"""Comparisons that a larger first operand makes false."""

EXTREMES = ("maximum", "minimum")
"""What only keeps the largest or the smallest value of another state."""


def state_kinds(cuts: Cuts, root: Root) -> tuple[StateKind, ...]:
    """Returns what each state of a root is.

    A membrane is what spikes come from, or what a readout adds up. A current leads to a membrane and does not come from
    it. An adaptation is driven by the neuron's own spikes or its membrane, and keeps it from spiking. Spikes that are
    handed on to the next step are called so. What is none of these is a state, and no more is said of it.
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
        self.pushes = self._pushes() if root.spikes and len(self.following) > 1 else {}

    def kind_in_neuron(self, state: fx.Node) -> StateKind:
        """Tells the part of a state where the core spikes."""
        if state in self.late:
            return "spikes"
        before = [other for other in self.following if other is state or state in self.leads[other]]
        push = self.pushes.get(state, 0.0)
        if self.driven and not any(self.reads[other].currents for other in before):
            driven = any(self.reads[other].spikes for other in before)
            return "adaptation" if driven and push <= 0 and self._feeds_spikes(state) else "state"
        if len(self.following) == 1:
            return "membrane"
        if push < 0:
            of_its_own = not self.reads[state].spikes and self.reads[state].states <= {state}
            return "current" if of_its_own else "adaptation"
        if push > 0:
            upward = [other for other in self.leads[state] if self.pushes[other] > 0]
            return "current" if any(state not in self.leads[other] for other in upward) else "membrane"
        return "state"

    def kind_in_readout(self, state: fx.Node) -> StateKind:
        """Tells the part of a state where nothing spikes."""
        watching = {other for other, made in self.following.items() if operation_of(made).name in EXTREMES}
        if state in watching:
            return "state"
        beyond = [other for other in self.leads[state] - watching if state not in self.leads[other]]
        return "current" if beyond else "membrane"

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

        Its derivative tells, on the example: that of what is compared, or else that of a state which is compared later.
        """
        leaves = {state: _leaf(example_value(state)) for state in self.following}
        try:
            values = self._values(leaves)
            compared = [sign * values[node] for node, sign in self._arguments() if node in values]
            pushes = _signs(compared, leaves)
            moved = {state: _signs([values[made]], leaves) for state, made in self.following.items() if made in values}
        except (RuntimeError, TypeError, ValueError):
            return dict.fromkeys(self.following, 0.0)  # it only names them
        for _ in self.following:
            for state in [state for state, push in pushes.items() if not push]:
                later = [pushes[other] * signs[state] for other, signs in moved.items() if other is not state]
                pushes[state] = next((sign for sign in later if sign), 0.0)
        # A neuron may as well spike where its membrane is low.
        return pushes if max(pushes.values()) > 0 else {state: -push for state, push in pushes.items()}

    def _values(self, leaves: Mapping[fx.Node, Any]) -> dict[fx.Node, Any]:
        """Computes the core on the example from other states; nothing leads back through a spike."""
        step = fx.Interpreter(self.cuts.program.step, garbage_collect_values=False)
        values = step.env = dict(leaves)
        with torch.enable_grad(), torch.random.fork_rng(devices=[]):
            for node in self.nodes:
                for source in node.all_input_nodes:
                    if source not in values:
                        values[source] = _apart(example_value(source))
                made = step.run_node(node)
                values[node] = _apart(made) if node in self.spikes else made
        return values


def _apart(value: Any) -> Any:
    return value.detach().clone() if isinstance(value, Tensor) else value


def _leaf(value: Tensor) -> Tensor:
    leaf = value.detach().clone()
    return leaf.requires_grad_() if leaf.is_floating_point() else leaf


def _signs(values: Iterable[Tensor], leaves: Mapping[fx.Node, Tensor]) -> dict[fx.Node, float]:
    """Returns the sign of the derivative of the sum of some values to each state."""
    terms = [value.sum() for value in values if isinstance(value, Tensor) and value.requires_grad]
    wanted = {state: leaf for state, leaf in leaves.items() if leaf.requires_grad}
    if not terms or not wanted:
        return dict.fromkeys(leaves, 0.0)
    found = torch.autograd.grad(sum(terms[1:], terms[0]), list(wanted.values()), allow_unused=True, retain_graph=True)
    signs = {
        state: 0.0 if each is None else float(each.sum().sign()) for state, each in zip(wanted, found, strict=True)
    }
    return {state: signs.get(state, 0.0) for state in leaves}
