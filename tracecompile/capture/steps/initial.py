"""Initial states of step models."""

from __future__ import annotations

import operator
from typing import Any

import torch
from torch import fx
from torch.utils import _pytree as pytree

from tracecompile.capture.copying.copies import tensor_attributes
from tracecompile.capture.copying.fresh_start import has_samples
from tracecompile.capture.steps.shapes import same_shape_above
from tracecompile.capture.steps.step_states import State, StepRuns
from tracecompile.capture.tracing.build import GraphCutter, take_in_order
from tracecompile.capture.tracing.names import valid_name
from tracecompile.capture.tracing.tape import Tape
from tracecompile.errors import SourceLine


def initial_in_prologue(cutter: GraphCutter, runs: StepRuns) -> tuple[tuple[Any, ...], list[State]]:
    """Writes the initial states into the prologue; None for one that only the caller can give.

    Returns:
        The initial states, and those among them that are a guess: the model starts them in another way, and zeros have
        to give the same first step.
    """
    present = dict(tensor_attributes(runs.model))
    made = states_made_by_first_run(runs.first, runs.steady, runs.states)
    initial: list[Any] = []
    guessed: list[State] = []
    for state in runs.states:
        if state.leaf is not None and not runs.arguments.makes_own:
            initial.append(None)
        elif state.statistic:
            initial.append(cutter.add("get_attr", state.name, (), {}, present[state.name].detach()))
        elif state.leaf is None and state.name in present and goes_on(present[state.name], made.get(state)):
            initial.append(value_at_conversion(cutter, runs, state, present[state.name]))
        elif isinstance(made.get(state), fx.Node) and isinstance(made[state].meta["val"], torch.Tensor):
            initial.append(as_shaped(cutter, runs, state, take_in_order(cutter, runs.first.graph, [made[state]])[0]))
        else:
            number = made.get(state, 0)
            initial.append(filled(cutter, runs, state, number if isinstance(number, (int, float)) else 0))
            guessed.append(state)
    return tuple(initial), guessed


def goes_on(value: torch.Tensor, made: Any) -> bool:
    """Tells whether the first run goes on from what the attribute held, rather than from a state of its own making."""
    return value.numel() > 0 and (not isinstance(made, fx.Node) or made.op == "get_attr")


def value_at_conversion(cutter: GraphCutter, runs: StepRuns, state: State, value: torch.Tensor) -> fx.Node:
    """Starts a state from what the attribute held when the model was converted, in the present batch's shape."""
    shape = state.placeholder.meta["val"].shape
    if value.shape == shape and bool((value == 0).all()):
        return filled(cutter, runs, state, 0)
    target = state.name
    if "[" in target or value.requires_grad:
        target = f"initial_{valid_name(state.name)}"
        runs.root.register_buffer(target, value.detach().clone(), persistent=False)
    node = cutter.add("get_attr", target, (), {}, value.detach())
    uniform = value.dim() > 0 and len(value) > 0 and bool((value == value[:1]).all())
    if value.shape == shape and uniform:
        node = cutter.add("call_function", operator.getitem, (node, slice(0, 1)), {}, value.detach()[:1])
    elif value.shape == shape:
        if has_samples(value) and state.name not in dict(runs.model.named_buffers()):
            runs.left_over.append((state.name, reading_line(state)))
        return node
    return as_shaped(cutter, runs, state, node)


def reading_line(state: State) -> SourceLine | None:
    """Returns the user's line that reads a state first."""
    return next((where for user in state.placeholder.users if (where := user.meta.get("where")) is not None), None)


def filled(cutter: GraphCutter, runs: StepRuns, state: State, number: float) -> fx.Node:
    """Starts a state from one number everywhere, in the shape that the first step gives it."""
    like = shape_giver(runs, state)
    source = take_in_order(cutter, runs.first.graph, [like])[0]
    target, args = (torch.zeros_like, (source,)) if number == 0 else (torch.full_like, (source, number))
    return cutter.add("call_function", target, args, {}, target(like.meta["val"], *args[1:]), like.meta.get("where"))


def as_shaped(cutter: GraphCutter, runs: StepRuns, state: State, initial: fx.Node) -> fx.Node:
    """Expands an initial state that broadcasts to the shape that the state has later.

    A tensor without dimensions does not count for the type of a sum, and would with the shape: it takes the type, too.
    """
    like = shape_giver(runs, state)
    given: torch.Tensor = initial.meta["val"]
    if given.shape == like.meta["val"].shape:
        return initial
    where = like.meta.get("where")
    source = take_in_order(cutter, runs.first.graph, [like])[0]
    value = given.expand_as(like.meta["val"])
    made = cutter.add("call_method", "expand_as", (initial, source), {}, value, where)
    dtype = following_in_first(runs, state).meta["val"].dtype
    if given.ndim or given.dtype == dtype:
        return made
    return cutter.add("call_method", "to", (made, dtype), {}, value.to(dtype), where)


def shape_giver(runs: StepRuns, state: State) -> fx.Node:
    """Returns the earliest value of the first run that has the state's shape whatever the batch size.

    It is upstream of the state and computed from the input, and not from another state that has a batch size of its
    own.
    """
    following = following_in_first(runs, state)
    fitting = same_shape_above(following)
    fixed = {name for name, _ in tensor_attributes(runs.model)} & {other.name for other in runs.states}
    varying: set[fx.Node] = set()
    tied: set[fx.Node] = set()
    nodes: list[fx.Node] = list(runs.first.graph.nodes)
    for node in nodes:
        if node.op == "placeholder" or any(source in varying for source in node.all_input_nodes):
            varying.add(node)
        if (node.op == "get_attr" and node.target in fixed) or any(source in tied for source in node.all_input_nodes):
            tied.add(node)
        if node in fitting and node in varying and node not in tied:
            return node
    return following


def following_in_first(runs: StepRuns, state: State) -> fx.Node:
    """Returns what a state becomes in the first run."""
    if state.leaf is None:
        return runs.first.attributes[state.name]
    position = runs.arguments.results[runs.arguments.leaves.index(state.leaf)]
    node: fx.Node = pytree.tree_leaves(runs.first.result)[position]
    return node


def states_made_by_first_run(first: Tape, steady: Tape, states: list[State]) -> dict[State, Any]:
    """Lays the steady step over the first one: where it reads a state, the first run shows what it started from."""
    visits: dict[Any, list[fx.Node]] = {}
    for node in first.graph.nodes:
        visits.setdefault(label(node), []).append(node)
    by_placeholder = {state.placeholder: state for state in states}
    made: dict[State, Any] = {}
    refused: set[State] = set()
    used: dict[Any, int] = {}
    for node in steady.graph.nodes:
        key = label(node)
        turn = used[key] = used.get(key, -1) + 1
        partner = visits.get(key, [])[turn : turn + 1]
        readers = [by_placeholder[source] for source in node.all_input_nodes if source in by_placeholder]
        if not partner:
            refused.update(readers)
            continue
        for slot, other in zip(slots(node), slots(partner[0]), strict=False):
            state = by_placeholder.get(slot) if isinstance(slot, fx.Node) else None
            if state is not None and made.setdefault(state, other) is not other:
                refused.add(state)
    return {state: value for state, value in made.items() if state not in refused}


def label(node: fx.Node) -> tuple[Any, ...]:
    """Returns what identifies a node between two runs."""
    return node.meta.get("place"), node.op, str(node.target)


def slots(node: fx.Node) -> list[Any]:
    """Returns the leaves of a node's arguments."""
    return pytree.tree_leaves(
        (list(node.args), dict(node.kwargs)), is_leaf=lambda leaf: isinstance(leaf, (fx.Node, slice))
    )
