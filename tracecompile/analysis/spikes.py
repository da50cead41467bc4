"""Finds the nodes of a step whose values are spikes, whatever way they were written."""

from __future__ import annotations

from collections import Counter

from torch import fx

from tracecompile.analysis.pointwise import emits_spikes, is_comparison, is_surrogate
from tracecompile.layers import Layer
from tracecompile.neuron_step import NeuronStep
from tracecompile.operations import SAME_NUMBERS, Fact, has, operation_of
from tracecompile.program import StepProgram, is_tensor, step_results

_SUMS = {"add": 1, "sub": -1}


def spike_nodes(program: StepProgram) -> set[fx.Node]:
    """Returns every node whose value is a spike: surrogates, cast comparisons, and the straight-through form of either.

    A comparison that only selects (``torch.where``, a mask) is not a spike; the value it is cast to is one.
    """
    found: set[fx.Node] = set()
    values: dict[fx.Node, Counter[fx.Node]] = {}
    for node in program.step.graph.nodes:
        values[node] = _linear_value(node, values)
        if emits_spikes(program, node) or _casts_comparison(node, found):
            found.add(node)
        elif not is_surrogate(program, node) and node.op in ("call_function", "call_method"):
            terms = values[node]
            (only, weight) = next(iter(terms.items())) if len(terms) == 1 else (node, 0)
            if only is not node and weight == 1 and only in found:
                found.add(node)
    return {node for node in found if is_tensor(node) and node.meta["val"].dtype.is_floating_point}


def adds(node: fx.Node) -> bool:
    """Tells whether a node is a sum or a difference: a spike that is one is that of a straight-through estimator."""
    return operation_of(node).name in _SUMS


def _casts_comparison(node: fx.Node, found: set[fx.Node]) -> bool:
    if is_comparison(node):
        found.add(node)
        return False
    if has(node, SAME_NUMBERS | Fact.DETACHES) and node.args and node.args[0] in found:
        return True
    if node.op == "call_function" and operation_of(node).name == "where" and len(node.args) == 3:
        levels = {value for value in node.args[1:] if isinstance(value, (int, float))}
        return levels == {0, 1} and node.args[0] in found
    return False


def _linear_value(node: fx.Node, values: dict[fx.Node, Counter[fx.Node]]) -> Counter[fx.Node]:
    """Returns the value of a node as a signed sum of others, blind to detach: ``soft - soft.detach()`` is nothing."""
    if has(node, Fact.DETACHES):
        (inner,) = node.all_input_nodes
        return values[inner]
    sign = None if node.kwargs else _SUMS.get(operation_of(node).name)
    if sign is not None and len(node.args) == 2 and all(isinstance(argument, fx.Node) for argument in node.args):
        left, right = (values[argument] for argument in node.args)  # type: ignore[index]
        total = Counter(left)
        for term, weight in right.items():
            total[term] += sign * weight
        return Counter({term: weight for term, weight in total.items() if weight})
    return Counter({node: 1})


def spikes_sent(program: StepProgram, layer: Layer) -> tuple[str, ...]:
    """Returns the spikes of a layer that leave it, scaled or added up as they may be, each where it is made.

    What a layer also computes from its spikes (a reset, a membrane that the user reads) tells of them only where
    nothing that is made of spikes alone leaves it.
    """
    nodes = {node.name: node for node in program.step.graph.nodes}
    behind = [_spikes_behind(nodes[name], layer) for name in layer.outputs]
    found = [spikes for spikes, alone in behind if alone] or [spikes for spikes, _ in behind]
    spikes = set[fx.Node]().union(*found) or {nodes[name] for name in layer.spikes}
    return tuple(dict.fromkeys(_first(node, layer).name for node in nodes.values() if node in spikes))


def _spikes_behind(node: fx.Node, layer: Layer) -> tuple[set[fx.Node], bool]:
    """Returns the spikes that a value of a layer is computed from, and whether it is from these alone."""
    own, moving = set(layer.nodes), {*layer.currents, *layer.states}
    spikes, seen, waiting, alone = set[fx.Node](), set[fx.Node](), [node], True
    while waiting:
        node = waiting.pop()
        if node.name in layer.spikes:
            spikes.add(node)
        elif node.name in moving:
            alone = False
        elif node.name in own and node not in seen:
            seen.add(node)
            waiting += node.all_input_nodes
    return spikes, alone and bool(spikes)


def _first(node: fx.Node, layer: Layer) -> fx.Node:
    """Follows a spike that is cast, copied, detached or given a gradient to where it is made."""
    while len(sources := [source for source in node.all_input_nodes if source.name in layer.spikes]) == 1:
        node = sources[0]
    return node


def reset_style(program: StepProgram, nodes: list[fx.Node], spikes: set[fx.Node]) -> str:
    """Says how the reset of a core meets the gradient: "none", "in graph" or "detached".

    The reset is whatever leads from a spike of the core to one of its next states other than the spike itself. A
    surrogate all of whose ways there cross ``detach`` is a reset gate, and a detached one; so is a bare comparison.
    """
    for node in nodes:
        if is_surrogate(program, node) and isinstance(leaf := program.resolve(str(node.target)), NeuronStep):
            return leaf.step.reset
    inside = set(nodes)
    carried = dict(zip(step_results(program.step)[1], (carry.placeholder for carry in program.carries), strict=True))
    placeholders = {node.name: node for node in program.step.graph.nodes if node.op == "placeholder"}
    starts = [node for node in nodes if node in spikes and not any(source in spikes for source in node.all_input_nodes)]
    pending = [(node, any(is_comparison(source) for source in node.all_input_nodes)) for node in starts]
    pending += [(node, True) for node in nodes if is_comparison(node)]
    reached: set[tuple[fx.Node, bool]] = set()
    styles: set[bool] = set()
    while pending:
        node, detached = pending.pop()
        if (node, detached) in reached:
            continue
        reached.add((node, detached))
        if node in carried:
            if node not in spikes:
                styles.add(detached)
                continue
            pending.append((placeholders[carried[node]], detached))
        pending += [(user, detached or has(user, Fact.DETACHES)) for user in node.users if user in inside]
    if not styles:
        return "none"
    return "in graph" if False in styles else "detached"
