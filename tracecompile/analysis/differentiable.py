"""Which values require a gradient: those that autograd would find to require one had the model itself been run.

A converted module computes its values without a graph and adds an anchor to each of them afterwards. What the user
detached, recorded under ``no_grad``, or computed from nothing that is trained, must come back as it does from the
model: without a graph.
"""

from __future__ import annotations

import copy
from collections.abc import Mapping, Sequence
from typing import Any

from torch import Tensor, fx, nn

from tracecompile.operations import CUTS, has
from tracecompile.program import StepProgram, example_value, step_results

Flags = tuple[bool, ...]


class GradientFlow:
    """Follows ``requires_grad`` through the steps of one program."""

    def __init__(self, program: StepProgram) -> None:
        """Takes a program whose step is captured."""
        self.program = program
        self.nodes: list[fx.Node] = [node for node in program.step.graph.nodes if node.op != "output"]
        self.outputs, self.following = step_results(program.step)
        self._known: dict[tuple[Flags, Flags, Flags, Flags, int], tuple[Flags, Flags]] = {}

    def __deepcopy__(self, memo: dict[int, Any]) -> GradientFlow:
        """Returns that of the copied program: nodes of a graph hang together, and are copied by their graph alone."""
        return GradientFlow(copy.deepcopy(self.program, memo))

    def over(
        self, inputs: Sequence[object], invariants: Sequence[object], states: Sequence[object], steps: int
    ) -> tuple[Flags, Flags]:
        """Returns what requires a gradient after some steps.

        Args:
            inputs: Of the step.
            invariants: What does not change over time.
            states: Before the first step: tensors, or whether each requires a gradient.
            steps: How many.

        Returns:
            For each output whether what is collected of it does, and for each last state.
        """
        trained = tuple(parameter.requires_grad for parameter in self.program.root.parameters())
        # A state that is handed on through every other state has been everywhere after as many steps as there are.
        counted = min(steps, len(self.following) + 2)
        given = [tuple(_requires(value) for value in group) for group in (inputs, invariants, states)]
        key = (given[0], given[1], given[2], trained, counted)
        if key not in self._known:
            self._known[key] = self._followed(given[0], given[1], given[2], counted)
        return self._known[key]

    def _followed(self, inputs: Flags, invariants: Flags, states: Flags, steps: int) -> tuple[Flags, Flags]:
        collected = [False] * len(self.outputs)
        drawn = [False] * len(self.program.draws.names)
        for _ in range(steps):
            flags = self._of_step([*inputs, *drawn, *invariants, *states])
            for index, (node, output) in enumerate(zip(self.outputs, self.program.outputs, strict=True)):
                kept = collected[index] and output.collect in ("stack", "sum")
                collected[index] = kept or flags[node]
            states = tuple(flags[node] for node in self.following)
        return tuple(collected), states

    def _of_step(self, given: Sequence[bool]) -> Mapping[fx.Node, bool]:
        arguments = iter(given)
        flags: dict[fx.Node, bool] = {}
        for node in self.nodes:
            if node.op == "placeholder":
                flags[node] = next(arguments)
            elif node.op == "get_attr":
                flags[node] = _requires(self.program.resolve(str(node.target)))
            else:
                value = example_value(node)
                cut = has(node, CUTS)
                cut |= isinstance(value, (int, float)) or (isinstance(value, Tensor) and not differentiable(value))
                flags[node] = not cut and (any(flags[source] for source in node.all_input_nodes) or self._learns(node))
        return flags

    def _learns(self, node: fx.Node) -> bool:
        module = self.program.resolve(str(node.target)) if node.op == "call_module" else None
        return isinstance(module, nn.Module) and any(parameter.requires_grad for parameter in module.parameters())


def _requires(value: object) -> bool:
    return value if isinstance(value, bool) else isinstance(value, Tensor) and value.requires_grad


def differentiable(value: Tensor) -> bool:
    """Tells whether a tensor is of a type that has gradients: real or complex numbers."""
    return value.is_floating_point() or value.is_complex()
