"""Runs the segments of a model that lie before its last loop, and hands on what they return.

What a segment takes is not kept as it is for backward: spikes are kept as bits, in one place however many read them.
"""

from __future__ import annotations

import operator
import weakref
from collections.abc import Callable, Sequence
from dataclasses import replace
from typing import Any

import torch
from torch import Tensor, fx

from tracecompile.program import StepProgram
from tracecompile.runtime.executes import Executes
from tracecompile.runtime.live import count_states
from tracecompile.runtime.packed import Packed
from tracecompile.segment import segments_of

Result = tuple[str, int]
"""A segment, and the place of one of its results."""


class Ahead:
    """The segments of one program.

    Attributes:
        program: What is left: its prologue takes the leaves of the call, and then what the segments return.
        kept: What of the last call is kept for backward: it grows with the number of time steps.
        left: The last states of all segments.
    """

    def __init__(self, program: StepProgram, executor_of: Callable[[StepProgram], Executes]) -> None:
        """Takes a program that has segments and has gone through all passes.

        Args:
            program: The program.
            executor_of: Makes what runs the program of a segment.
        """
        emitted = program.emitted
        assert emitted is not None
        self.left: list[Tensor] = []
        self.kept: weakref.WeakSet[Packed] = weakref.WeakSet()
        self.executors = {name: executor_of(segment.program) for name, segment in segments_of(program.leaves)}
        graph = emitted.prologue.graph
        self.calls = [node for node in graph.nodes if node.op == "call_module" and str(node.target) in self.executors]
        placeholders = [node for node in graph.nodes if node.op == "placeholder"]
        self.leaves = placeholders[len(emitted.prologue_attributes) :]
        self.results: dict[fx.Node, Result] = {
            user: (str(call.target), int(str(user.args[1]))) for call in self.calls for user in call.users
        }
        self.program = program.evolve(
            emitted=replace(
                emitted,
                prologue=self._rest(program, emitted.prologue, "Prologue"),
                arguments=self._rest(program, emitted.arguments, "Arguments"),
            )
        )

    def _rest(self, program: StepProgram, module: fx.GraphModule, name: str) -> fx.GraphModule:
        """Returns a prologue that takes what the segments return as its last arguments."""
        graph = fx.Graph()
        values: dict[fx.Node, fx.Node] = {}
        for node in module.graph.nodes:
            if node.op == "placeholder":
                values[node] = graph.node_copy(node)
        given: dict[Result, fx.Node] = {}
        for node, result in self.results.items():
            given[result] = graph.placeholder(node.name)
            given[result].meta.update(node.meta)
        for node in module.graph.nodes:
            if node.op == "call_module" and str(node.target) in self.executors:
                continue
            source = node.args[0] if node.target is operator.getitem else None
            if isinstance(source, fx.Node) and str(source.target) in self.executors:
                values[node] = given[str(source.target), int(str(node.args[1]))]
            elif node.op != "placeholder":
                values[node] = graph.node_copy(node, values.__getitem__)
        return program.graph_module(graph, name)

    def run(
        self, by: Executes, leaves: Sequence[Any], bins: int, left: Sequence[Tensor] | None
    ) -> tuple[list[Any], list[Any]]:
        """Runs all segments.

        Args:
            by: What runs the rest, by the same settings.
            leaves: Of the call.
            bins: Of the rule.
            left: States that the last call left, of one segment after the other.

        Returns:
            What the prologue of the rest takes, and the same as it is kept for backward.
        """
        values: dict[fx.Node, Any] = dict(zip(self.leaves, leaves, strict=True))
        packed: dict[fx.Node, Any] = {}
        learning, self.left = torch.is_grad_enabled(), []

        def kept(node: Any) -> Any:
            value = values[node] if isinstance(node, fx.Node) else node
            if not learning or node not in self.results or not isinstance(value, Tensor):
                return value
            if node not in packed:
                packed[node] = Packed(value)
                self.kept.add(packed[node])
            return packed[node]

        for number, call in enumerate(self.calls):
            name = str(call.target)
            executor = self.executors[name]
            executor.program = executor.program.evolve(settings=by.program.settings)
            executor.stepped = by.stepped
            given = [values[node] if isinstance(node, fx.Node) else node for node in call.args]
            count = count_states(executor.program.carries)
            begun = None if left is None else left[len(self.left) : len(self.left) + count]
            found, _, states = executor.sequence(given, bins, begun, [kept(node) for node in call.args])
            self.left += states[:count]
            del given
            for node in call.users:
                values[node] = found[self.results[node][1]]
            del found
            later = {node for each in self.calls[number + 1 :] for node in each.all_input_nodes}
            for node in [node for node in values if node in self.results and node not in later]:
                if all(user in self.calls for user in node.users):
                    del values[node]
        rest = [*self.leaves, *self.results]
        return [values.get(node) for node in rest], [kept(node) if node in values else None for node in rest]
