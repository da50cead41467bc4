"""Moves work on whole sequences into the time step.

One big linear over the sequence before the loop, or over the stacked spikes after it, makes autograd keep the sequence.
Computed step by step it is part of a layer like any other. The values stay those of the big product, see
``tracecompile.exact``; only where a later loop reads them are they computed step by step, and then they have to be the
same on the example.
"""

from __future__ import annotations

import operator

import torch
from torch import fx, nn
from torch.utils import _pytree as pytree

from tracecompile.capture.layerwise.stepwise import Stepwise
from tracecompile.capture.loops.slices import picked
from tracecompile.capture.tracing.build import cone
from tracecompile.capture.tracing.tape import Tape
from tracecompile.exact import exact_value

FEWEST_STEPS = 3
EXACT = ("exact value",)
"""The place of what is written beside the user's code."""


def sink_into_steps(tape: Tape, root: nn.Module) -> Tape:
    """Rewrites a tape so that hoisted work with parameters is done at every step."""
    stepwise = Stepwise(tape, root)
    for node in list(tape.graph.nodes):
        sink_slice(tape, stepwise, node)
    live = cone(pytree.tree_leaves(tape.result))
    for node in list(tape.graph.nodes):
        if node in live:
            sink_after(tape, stepwise, node)
    return tape


def sink_slice(tape: Tape, stepwise: Stepwise, node: fx.Node) -> None:
    """Replaces the slice of a hoisted computation by the computation of the slice."""
    index = index_of(node)
    found = next((pick for pick in picked(node) if pick.number == index and not pick.rest), None)
    if found is None or index is None or found.keep or not stepwise.has_parameters(found.sequence):
        return
    whole, dim = found.sequence, found.dim
    if whole.meta["val"].shape[dim] < FEWEST_STEPS or whole.target is torch.stack or not node.users:
        return
    from_loop = reads_stack(whole)
    with tape.graph.inserting_before(node):
        at_step = stepwise.at(whole, dim, index)
        if at_step is None:
            return
        if from_loop:
            if torch.equal(at_step.meta["val"], whole.meta["val"].select(dim, index)):
                replace(tape, node, at_step)
            return
        fixed = detached(tape, whole)
        value = stepwise.new(node, "call_method", "select", (fixed, dim, index), {}, node.meta["val"])
        replace(tape, node, stepwise.new(node, "call_function", exact_value, (at_step, value), {}, node.meta["val"]))


def index_of(node: fx.Node) -> int | None:
    """Returns the whole number by which a node picks a slice."""
    if node.target is operator.getitem:
        items = node.args[1] if isinstance(node.args[1], tuple) else (node.args[1],)
        numbers = [item for item in items if type(item) is int]
        return numbers[0] if len(numbers) == 1 and numbers[0] >= 0 else None
    if node.target in ("select", torch.select) and len(node.args) == 3 and type(node.args[2]) is int:
        return node.args[2] if node.args[2] >= 0 else None
    return None


def detached(tape: Tape, whole: fx.Node) -> fx.Node:
    """Returns the node of a sequence without its gradient, one for all steps."""
    for user in whole.users:
        if user.target == "detach" and user.meta.get("place") == EXACT:
            return user
    with tape.graph.inserting_after(whole):
        node = tape.graph.call_method("detach", (whole,))
    node.meta.update(val=whole.meta["val"], where=whole.meta.get("where"), place=EXACT)
    return node


def reads_stack(node: fx.Node) -> bool:
    """Tells whether a sequence is computed from values that were stacked."""
    seen: set[fx.Node] = set()
    waiting = [node]
    while waiting:
        current = waiting.pop()
        if current.target is torch.stack:
            return True
        if current not in seen:
            seen.add(current)
            waiting += current.all_input_nodes
    return False


def sink_after(tape: Tape, stepwise: Stepwise, node: fx.Node) -> None:
    """Lets the loop compute what is computed of all its stacked values afterwards."""
    root = stack_below(stepwise, node)
    if root is None or any(stack_below(stepwise, user) is not None for user in node.users):
        return
    stack, dim = root
    items = stack.args[0]
    assert isinstance(items, (list, tuple))
    if len(items) < FEWEST_STEPS:
        return
    anchor = detached(tape, node)
    with tape.graph.inserting_before(anchor.next):
        parts = [stepwise.at(node, dim, step) for step in range(len(items))]
        if any(part is None for part in parts):
            return
        stacked = tape.graph.call_function(torch.stack, (parts, dim))
        value = tape.graph.call_function(exact_value, (stacked, anchor))
    for made in (stacked, value):
        made.meta.update(val=node.meta["val"], where=node.meta.get("where"), place=EXACT)
    replace(tape, node, value, keep=anchor)


def stack_below(stepwise: Stepwise, node: fx.Node) -> tuple[fx.Node, int] | None:
    """Returns the stack, and its time axis, of which a node is computed with parameters, all steps alike."""
    current, learns = node, False
    while current.target is not torch.stack:
        if current.op not in ("call_module", "call_function") or not current.args:
            return None
        source = current.args[0]
        if not isinstance(source, fx.Node) or current.meta.get("place") == EXACT:
            return None
        learns = learns or current.op == "call_module" or len(current.all_input_nodes) > 1
        current = source
    dim = current.args[1] if len(current.args) > 1 else current.kwargs.get("dim", 0)
    if not learns or not isinstance(dim, int) or not stepwise._keeps_time(node, dim):
        return None
    return current, dim


def replace(tape: Tape, node: fx.Node, value: fx.Node, keep: fx.Node | None = None) -> None:
    """Puts a value in the place of a node, in what the user returns too."""
    node.replace_all_uses_with(value, delete_user_cb=lambda user: user is not keep)
    tape.result = pytree.tree_map(lambda leaf: value if leaf is node else leaf, tape.result)
