"""Models of which each call is one time step.

The model runs twice on its own leftovers. The first run shows which attributes it writes and how it makes states that
it does not have yet; the second, with every state handed in, *is* the step.
"""

from __future__ import annotations

from dataclasses import dataclass
from typing import Any

import torch
from torch import fx, nn
from torch.utils import _pytree as pytree

from tracecompile.capture.build import GraphCutter, cone, evaluate, graph_module, same_graph
from tracecompile.capture.copies import share_parameters, tensor_attributes
from tracecompile.capture.explicit import StateArguments, find_state_arguments
from tracecompile.capture.initial import following_in_first, initial_in_prologue
from tracecompile.capture.signature import leaf_names
from tracecompile.capture.tracer import Recorder, Tape
from tracecompile.errors import UnrollableLoop, UnsupportedState
from tracecompile.program import Carry, SequenceInput, StepOutput, StepProgram


@dataclass(frozen=True)
class State:
    """One state of the steady step.

    Attributes:
        name: The user's name for it.
        placeholder: What hands it to the step, in the tape.
        following: What it becomes.
        leaf: Its position among the leaves of the arguments, None for an attribute.
    """

    name: str
    placeholder: fx.Node
    following: fx.Node
    leaf: int | None


def capture_step(model: nn.Module, args: tuple[Any, ...], kwargs: dict[str, Any]) -> StepProgram | None:
    """Captures one call as the step; None where no state outlives the call."""
    first_copy = share_parameters(model)
    arguments = find_state_arguments(model, args, kwargs)
    first = Recorder(first_copy).run(*arguments.first, leaf_names(model, *arguments.first))
    arguments = arguments.filled(first)
    warm = share_parameters(first_copy)
    steady = run_steady(warm, arguments, first)
    states = live_states(steady, arguments)
    if not states:
        return None
    again = share_parameters(warm)
    require_steady(steady, states, run_steady(again, arguments, steady), arguments)
    return StepBuilder(model, arguments, first, steady, states).build()


def run_steady(model: nn.Module, arguments: StateArguments, before: Tape) -> Tape:
    """Runs the model with every state handed in."""
    present = {name for name, _ in tensor_attributes(model)}
    written = {name: before.learning[name] for name in before.written if name in present}
    return Recorder(model).run(*arguments.steady, leaf_names(model, *arguments.steady), written, arguments.leaves)


def live_states(steady: Tape, arguments: StateArguments) -> list[State]:
    """Returns the states that the outputs depend on, sooner or later."""
    leaves = pytree.tree_leaves(steady.result)
    candidates = []
    for leaf, result in zip(arguments.leaves, arguments.results, strict=True):
        placeholder, following = steady.inputs[leaf], leaves[result]
        if placeholder is None or not isinstance(following, fx.Node):
            continue
        candidates.append(State(arguments.names[leaf], placeholder, following, leaf))
    for name, placeholder in steady.states.items():
        if name not in steady.attributes:
            raise UnsupportedState(
                f"The state {name} is gone after one step.", "Keep the state as a tensor from step to step."
            )
        candidates.append(State(name, placeholder, steady.attributes[name], None))
    explicit = [state for state in candidates if state.leaf is not None]
    needed = cone([*leaves, *[state.following for state in explicit]])
    live: list[State] = []
    while True:
        found = [
            state for state in candidates if state not in live and (state.placeholder in needed or state in explicit)
        ]
        if not found:
            return [state for state in candidates if state in live]
        live += found
        needed |= cone([state.following for state in found])


def require_steady(steady: Tape, states: list[State], again: Tape, arguments: StateArguments) -> None:
    """Refuses a step that is another one at the next call."""
    following = live_states(again, arguments)
    same_states = [state.name for state in following] == [state.name for state in states]
    if same_states and same_graph(bare_step(steady, states), bare_step(again, following)):
        return
    where = next((node.meta["where"] for node in reversed(again.graph.nodes) if node.meta.get("where")), None)
    for one, other in zip(steady.graph.nodes, again.graph.nodes, strict=False):
        if (one.op, str(one.target)) != (other.op, str(other.target)) or constants(one) != constants(other):
            where = other.meta.get("where")
            break
    raise UnrollableLoop(
        "The model computes something else at every call.",
        "Make each call the same step; keep counters out of it.",
        where,
    )


def constants(node: fx.Node) -> str:
    """Returns the constant part of a node's arguments."""
    return repr(fx.map_arg((node.args, node.kwargs), lambda used: None))


def bare_step(tape: Tape, states: list[State]) -> fx.Graph:
    """Cuts the step out of a tape for comparison."""
    cutter = GraphCutter()
    for node in tape.graph.nodes:
        if node.op == "placeholder":
            cutter.placeholder(node.name, [node])
    return cutter.finish(
        cutter.take((tuple(pytree.tree_leaves(tape.result)), tuple(state.following for state in states)))
    )


class StepBuilder:
    """Puts the program together."""

    def __init__(
        self, model: nn.Module, arguments: StateArguments, first: Tape, steady: Tape, states: list[State]
    ) -> None:
        self.root = share_parameters(model)
        self.model = model
        self.arguments = arguments
        self.first = first
        self.steady = steady
        self.states = states
        self.leaves: dict[str, nn.Module] = {**first.leaves, **steady.leaves}
        for tape in (first, steady):
            for name, value in tape.constants.items():
                self.root.register_buffer(name, value, persistent=False)
        taken = set(arguments.leaves)
        self.given = [node for leaf, node in enumerate(steady.inputs) if node is not None and leaf not in taken]
        tensors = [node for node in self.given if isinstance(node.meta["val"], torch.Tensor)]
        self.inputs, self.invariants = tensors, [node for node in self.given if node not in tensors]

    def build(self) -> StepProgram:
        """Returns the program."""
        results, spec = pytree.tree_flatten(self.steady.result)
        explicit = {state.leaf: state for state in self.states if state.leaf is not None}
        state_results = {
            result: explicit[leaf]
            for leaf, result in zip(self.arguments.leaves, self.arguments.results, strict=True)
            if leaf in explicit
        }
        outputs = {
            position: node
            for position, node in enumerate(results)
            if isinstance(node, fx.Node) and position not in state_results
        }
        step = self.build_step(list(outputs.values()))
        prologue, notes = self.build_prologue(step, list(outputs))
        return StepProgram(
            kind="step",
            root=self.root,
            leaves=self.leaves,
            prologue=prologue,
            step=step,
            epilogue=self.build_epilogue(results, list(outputs), state_results),
            inputs=tuple(SequenceInput(node.name, -1) for node in self.inputs),
            invariants=tuple(node.name for node in self.invariants),
            carries=tuple(Carry(state.name, carry_name(state), state.leaf is not None) for state in self.states),
            outputs=tuple(StepOutput(name, "step") for name in output_names(outputs)),
            length=None,
            signature=pytree.tree_structure(self.arguments.steady),
            result=spec,
            explicit_states=tuple(state.leaf for state in self.states if state.leaf is not None),
            notes=notes,
        )

    def build_step(self, outputs: list[fx.Node]) -> fx.GraphModule:
        """Cuts the step out of the steady tape and gives every node its value."""
        cutter = GraphCutter()
        values = []
        for node in [*self.inputs, *self.invariants]:
            cutter.placeholder(node.name, [node], node.meta["val"])
            values.append(node.meta["val"])
        for state in self.states:
            cutter.placeholder(carry_name(state), [state.placeholder], state.placeholder.meta["val"])
            values.append(state.placeholder.meta["val"])
        results = in_order(cutter, self.steady, [*outputs, *[state.following for state in self.states]])
        graph = cutter.finish((tuple(results[: len(outputs)]), tuple(results[len(outputs) :])))
        with torch.no_grad():
            evaluate(graph, values, self.root, self.leaves)
        return graph_module(graph, self.root, self.leaves, "Step")

    def build_prologue(self, step: fx.GraphModule, outputs: list[int]) -> tuple[fx.GraphModule, tuple[str, ...]]:
        """Builds what hands over the inputs and makes the initial states that the model itself can make."""
        cutter = GraphCutter()
        values = []
        for steady, original in zip(self.steady.inputs, self.first_inputs(), strict=True):
            if steady in self.given:
                stand_ins = [node for node in (steady, original) if node is not None]
                cutter.placeholder(steady.name, stand_ins, steady.meta["val"])
                values.append(steady.meta["val"])
        inputs = cutter.take(tuple(self.inputs))
        invariants = cutter.take(tuple(self.invariants))
        initial, guessed = initial_in_prologue(cutter, self)
        graph = cutter.finish((inputs, invariants, initial))
        if guessed:
            self.require_same_start(graph, step.graph, values, outputs, guessed)
        notes = tuple(f"The state {state.name} starts as zeros." for state in guessed)
        return graph_module(graph, self.root, self.leaves, "Prologue"), notes

    def require_same_start(
        self, prologue: fx.Graph, step: fx.Graph, values: list[Any], outputs: list[int], guessed: list[State]
    ) -> None:
        """Refuses a first step that is not the steady step from zeros."""
        with torch.no_grad():
            inputs, invariants, initial = evaluate(prologue, values, self.root, self.leaves, remember=False)
            given = [
                state.placeholder.meta["val"] if made is None else made
                for state, made in zip(self.states, initial, strict=True)
            ]
            results, following = evaluate(step, [*inputs, *invariants, *given], self.root, self.leaves, remember=False)
        first = pytree.tree_leaves(self.first.result)
        wanted = [first[position].meta["val"] for position in outputs]
        wanted += [following_in_first(self, state).meta["val"] for state in self.states]
        if not all(torch.equal(one, other) for one, other in zip([*results, *following], wanted, strict=True)):
            names = ", ".join(state.name for state in guessed)
            where = following_in_first(self, guessed[0]).meta.get("where")
            raise UnsupportedState(
                f"The first step treats the state {names} differently from the later ones.",
                "Start the state as zeros, or hand it in.",
                where,
            )

    def first_inputs(self) -> list[fx.Node | None]:
        """Returns the placeholders of the first run, in the places of the steady one's."""
        by_name = {node.name: node for node in self.first.inputs if node is not None}
        return [by_name.get(node.name) if node is not None else None for node in self.steady.inputs]

    def build_epilogue(self, results: list[Any], outputs: list[int], states: dict[int, State]) -> fx.GraphModule:
        """Builds what puts outputs and states in the places of the user's return value."""
        cutter = GraphCutter()
        collected = {}
        for position in outputs:
            node = results[position]
            collected[position] = cutter.placeholder(f"{node.name}_collected", value=node.meta["val"])
        final = {
            state: cutter.placeholder(f"{carry_name(state)}_final", value=state.following.meta["val"])
            for state in self.states
        }
        for node in self.invariants:
            cutter.placeholder(node.name, [node], node.meta["val"])
        leaves: list[Any] = []
        for position, value in enumerate(results):
            if position in collected:
                leaves.append(collected[position])
            elif position in states:
                leaves.append(final[states[position]])
            else:
                leaves.append(value)
        return graph_module(cutter.finish(tuple(leaves)), self.root, self.leaves, "Epilogue")


def in_order(cutter: GraphCutter, tape: Tape, wanted: list[fx.Node]) -> list[fx.Node]:
    """Copies what is wanted in the order of the user's code."""
    needed = cone(wanted, lambda node: node in cutter.copies)
    for node in tape.graph.nodes:
        if node in needed:
            cutter.take(node)
    return [cutter.take(node) for node in wanted]


def carry_name(state: State) -> str:
    """Returns the name of a state's placeholder in the step."""
    return state.placeholder.name


def output_names(outputs: dict[int, fx.Node]) -> list[str]:
    """Returns the names of the outputs: those of their nodes."""
    return [node.name for node in outputs.values()]
