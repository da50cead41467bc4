"""Takes the random draws out of the step: they are made before it is computed."""

from __future__ import annotations

from typing import Any, ClassVar

from torch import fx

from tracecompile.analysis.linearity import refuse_random
from tracecompile.errors import UnsupportedOperation
from tracecompile.graphs.draws import with_draws_ahead
from tracecompile.graphs.masks import Masks, read_for_values
from tracecompile.passes.base import Pass
from tracecompile.passes.compared import difference, returned_by, taken_apart, taken_by
from tracecompile.program import StepProgram, step_results
from tracecompile.rules import rule_of


class DrawAhead(Pass):
    """Makes a graph of what the step draws, and arguments of the step of what that gives.

    requires: a captured step.
    ensures: the step draws nothing. With what is drawn in its place it is the step as it was, dropouts being masks
        times what they take. The draws are in the order of the model, each of the shape that it had; what they take
        from the step are shapes, and values that do not depend on a state. Where nothing is drawn the program stays
        the same.

        before: cur = fc(x); cur_1 = dropout(cur, 0.2); mem_1 = 0.9 * mem + cur_1
        after:  draws(x, mem): mask = dropout(ones_like(fc(x)), 0.2); return (mask,)
                step(x, mask, mem): cur = fc(x); cur_1 = cur * mask; mem_1 = 0.9 * mem + cur_1

    A rule that records nothing leaves a step as it is in which something cannot be drawn ahead: autograd may see it.
    The shapes that a step draws depend on no value, so that the runtime draws for many steps before it computes them.
    """

    name: ClassVar[str] = "draw_ahead"

    def run(self, program: StepProgram) -> StepProgram:
        """See the class."""
        rule = rule_of(program.settings)
        if not rule.draws:
            refuse_random(program)
            return program
        try:
            return with_draws_ahead(program)
        except UnsupportedOperation:
            if rule.records:
                raise
            return program

    def ensures(self, before: StepProgram, after: StepProgram) -> str | None:
        """See the class."""
        if not after.draws.names:
            return None if after is before else "nothing is drawn, and yet the program is another one"
        if drawing := [node.name for node in after.step.graph.nodes if node.meta.get("draws")]:
            return f"the step still draws {drawing}"
        masks = Masks(before)
        return _fault_of_draws(masks, after) or _fault_of_step(masks, before, after)


def _fault_of_draws(masks: Masks, after: StepProgram) -> str | None:
    """Returns which draw is not that of the model, or out of its order, or None."""
    graph = after.draws.graph
    if graph is None:
        return "nothing draws what the step takes"
    given = [node.name for node in masks.graph.nodes if node.op == "placeholder"]
    names = [node.name for node in masks.draws]
    if taken_by(graph) != given or list(after.draws.names) != names:
        return f"{list(after.draws.names)} are drawn from {taken_by(graph)}, not {names} from {given}"
    found = returned_by(graph)
    order = {node: place for place, node in enumerate(graph.graph.nodes)}
    if [node.name for node in found] != names or list(found) != sorted(found, key=order.__getitem__):
        return f"{names} are not drawn in this order"
    waiting = list(zip(masks.draws, found, strict=True))
    while waiting:
        one, other = waiting.pop()
        if _spelt(one) != _spelt(other):
            return f"{one.format_node()} has become {other.format_node()}"
        waiting += zip(read_for_values(one), read_for_values(other), strict=True)
    return None


def _spelt(node: fx.Node) -> tuple[Any, ...]:
    """Returns what a node calls, with holes in the place of other nodes."""
    return node.op, node.target, taken_apart(node)[1]


def _fault_of_step(masks: Masks, before: StepProgram, after: StepProgram) -> str | None:
    """Returns in what the step is not the model's with what is drawn in its place, or None."""
    arguments = {node.name: node for node in after.step.graph.nodes if node.op == "placeholder"}
    known = {node: arguments[node.name] for node in masks.graph.nodes if node.name in arguments}
    outputs, states = next(node for node in reversed(masks.graph.nodes) if node.op == "output").args[0]
    pairs = zip((*outputs, *states), (node for group in step_results(after.step) for node in group), strict=True)
    fault = difference(pairs, known)
    return None if fault is None else f"the step is not that of the model: {fault}"
