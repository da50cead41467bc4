"""Puts prologue, step and epilogue of a step model together."""

from __future__ import annotations

from typing import Any

import torch
from torch import fx, nn
from torch.utils import _pytree as pytree

from tracecompile.capture.steps.explicit import StateArguments
from tracecompile.capture.steps.initial import following_in_first, initial_in_prologue
from tracecompile.capture.steps.step_states import State, StepRuns
from tracecompile.capture.tracing.build import GraphCutter, evaluate, graph_module, take_in_order
from tracecompile.capture.tracing.tape import Tape
from tracecompile.errors import UnsupportedState
from tracecompile.program import AHEAD, Carry, SequenceInput, StepOutput, StepProgram


class StepBuilder(StepRuns):
    """Puts the program together."""

    def __init__(
        self, model: nn.Module, arguments: StateArguments, first: Tape, steady: Tape, states: list[State]
    ) -> None:
        super().__init__(model, arguments, first, steady, states)
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
        outputs: dict[int, fx.Node] = {}
        for position, node in enumerate(results):
            # What is returned twice is one output.
            if isinstance(node, fx.Node) and position not in state_results and node not in outputs.values():
                outputs[position] = node
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
            carries=tuple(as_carry(state) for state in self.states),
            outputs=tuple(StepOutput(name, "step") for name in output_names(outputs)),
            length=None,
            signature=pytree.tree_structure(self.arguments.steady),
            result=spec,
            explicit_states=tuple(state.leaf for state in self.states if state.leaf is not None),
            explicit_results=tuple(
                result
                for leaf, result in zip(self.arguments.leaves, self.arguments.results, strict=True)
                if leaf in explicit
            ),
            notes=notes,
            left_over=tuple(self.left_over),
            pinned=self.steady.compared_inputs(),
            written=self.states_written(),
            reads_mode=self.first.reads_mode or self.steady.reads_mode,
        )

    def states_written(self) -> tuple[str, ...]:
        """Returns the attributes that the model writes and that are no statistics."""
        statistics = {state.name for state in self.states if state.statistic}
        written = dict.fromkeys((*self.first.written, *self.steady.written, *self.steady.states))
        return tuple(name for name in written if name not in statistics)

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
        kept = [state for state in self.states if state.following is state.placeholder]
        results = take_in_order(cutter, self.steady.graph, [*outputs, *[state.following for state in self.states]])
        for position, state in enumerate(self.states, start=len(outputs)):
            if state in kept:
                # Made in the first step and handed on ever since; a value of its own, as any other next state.
                where = state.following.meta.get("where")
                results[position] = cutter.add("call_method", "clone", (results[position],), {}, None, where)
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
        for node in graph.nodes:
            node.meta[AHEAD] = True  # the step is all that a call runs
        if guessed:
            self.require_same_start(graph, step.graph, values, outputs, guessed)
        notes = tuple(f"The state {state.name} starts as zeros." for state in guessed)
        return graph_module(graph, self.root, self.leaves, "Prologue"), notes

    def require_same_start(
        self, prologue: fx.Graph, step: fx.Graph, values: list[Any], outputs: list[int], guessed: list[State]
    ) -> None:
        """Refuses a first step that is not the steady step from zeros."""
        with torch.no_grad():
            inputs, invariants, initial = evaluate(
                prologue, values, self.root, self.leaves, remember=False, as_drawn=True
            )
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
            collected[node] = cutter.placeholder(f"{node.name}_collected", value=node.meta["val"])
        final = {
            state: cutter.placeholder(f"{carry_name(state)}_final", value=state.following.meta["val"])
            for state in self.states
        }
        for node in self.invariants:
            cutter.placeholder(node.name, [node], node.meta["val"])
        leaves: list[Any] = []
        for position, value in enumerate(results):
            if position in states:
                leaves.append(final[states[position]])
            else:
                leaves.append(collected.get(value, value) if isinstance(value, fx.Node) else value)
        return graph_module(cutter.finish(tuple(leaves)), self.root, self.leaves, "Epilogue")


def as_carry(state: State) -> Carry:
    """Returns the carry of a state."""
    statistic = state.name if state.statistic else ""
    place = "" if state.leaf is not None or statistic else state.name
    return Carry(state.name, carry_name(state), state.leaf is not None, statistic=statistic, place=place)


def carry_name(state: State) -> str:
    """Returns the name of a state's placeholder in the step."""
    return state.placeholder.name


def output_names(outputs: dict[int, fx.Node]) -> list[str]:
    """Returns the names of the outputs: those of their nodes."""
    return [node.name for node in outputs.values()]
