"""The steps of a program in float64, one value after the other: what its nodes are on some calls."""

from __future__ import annotations

import copy
from collections.abc import Collection, Sequence
from dataclasses import dataclass
from typing import Any

import torch
from torch import Tensor, fx, nn
from torch.utils import _pytree as pytree

from tracecompile.exact import exact_value
from tracecompile.program import StepProgram


def doubled(value: Any) -> Any:
    """Returns floating-point tensors, and the name of a dtype, in float64 on the CPU; anything else as it is."""
    if isinstance(value, Tensor):
        value = value.detach().cpu()
        return value.double() if value.is_floating_point() else value
    return torch.float64 if isinstance(value, torch.dtype) and value.is_floating_point else value


def as_double(module: nn.Module) -> nn.Module:
    """Returns a copy of a module in float64, on the CPU, in eval mode."""
    return copy.deepcopy(module).cpu().double().eval().requires_grad_(False)


class Doubled(fx.Interpreter):
    """Runs one graph of a program in float64, on copies of its modules.

    Attributes:
        values: Of the nodes, by name, of the last run.
    """

    def __init__(self, program: StepProgram, module: fx.GraphModule, known: dict[str, Any]) -> None:
        """Takes a program, one of its graphs, and what stands for its modules and tensors so far, by target."""
        super().__init__(module, garbage_collect_values=False)
        self._program, self._known = program, known
        self.values: dict[str, Any] = {}

    def run_node(self, n: fx.Node) -> Any:
        """Keeps the value of a node."""
        with torch.no_grad():
            value = pytree.tree_map(doubled, super().run_node(n))
        self.values[n.name] = value
        return value

    def call_function(self, target: Any, args: Any, kwargs: Any) -> Any:
        """Calls a function; a product that was hoisted out of the loop is computed step by step."""
        if target is exact_value:
            return args[0]
        return target(*pytree.tree_map(doubled, args), **pytree.tree_map(doubled, kwargs))

    def call_method(self, target: Any, args: Any, kwargs: Any) -> Any:
        """Calls a method."""
        name = "double" if target in ("float", "half", "bfloat16") else str(target)
        return getattr(args[0], name)(*pytree.tree_map(doubled, args[1:]), **pytree.tree_map(doubled, kwargs))

    def call_module(self, target: Any, args: Any, kwargs: Any) -> Any:
        """Calls a copy of a module."""
        return self._owned(target)(*args, **kwargs)

    def get_attr(self, target: Any, args: Any, kwargs: Any) -> Any:
        """Returns a tensor of the program."""
        return self._owned(target)

    def _owned(self, target: Any) -> Any:
        name = str(target)
        if name not in self._known:
            value = self._program.resolve(name)
            self._known[name] = as_double(value) if isinstance(value, nn.Module) else doubled(value)
        return self._known[name]


@dataclass(frozen=True)
class Run:
    """The values of a sequence.

    Attributes:
        initial: Of the states, by placeholder.
        steps: Of the nodes of the step, by name, at each step.
    """

    initial: dict[str, Any]
    steps: list[dict[str, Any]]

    def stacked(self, node: str) -> Tensor:
        """Returns the values of a node at all steps: (T, B, ...)."""
        return torch.stack([values[node] for values in self.steps])


def run_of(
    program: StepProgram,
    leaves: Sequence[tuple[Any, ...]],
    states: Sequence[Tensor],
    scale: float = 1,
    keep: Collection[str] | None = None,
) -> Run:
    """Runs a program without random numbers over one sequence.

    Args:
        program: The program.
        leaves: Of the call; of a step model, of each call.
        states: That the caller of a step model hands in: zeros are taken in their place.
        scale: By which the inputs are multiplied.
        keep: Names of the nodes whose values are wanted; None for all of them, of the first two steps alone.
    """
    known: dict[str, Any] = {}
    prologue, step = (Doubled(program, graph, known) for graph in (program.prologue, program.step))
    whole = program.kind == "sequence"
    calls = [prologue.run(*(_scaled(leaf, scale) for leaf in each)) for each in leaves]
    inputs, invariants, initial = calls[0]
    given = [torch.zeros_like(doubled(state)) for state in states]
    begun = [*initial, *(None for _ in program.carries)]
    now = [given.pop(0) if carry.explicit else begun[place] for place, carry in enumerate(program.carries)]
    found = Run({carry.placeholder: value for carry, value in zip(program.carries, now, strict=True)}, [])
    pairs = list(zip(program.inputs, inputs, strict=True))
    count = (program.length or min(value.shape[x.dim] for x, value in pairs)) if whole else len(leaves)
    for time in range(count if keep is not None else min(count, 2)):
        if not whole:
            inputs, invariants, _ = calls[time]
        slices = [v.select(x.dim, time) if whole else v for x, v in zip(program.inputs, inputs, strict=True)]
        _, now = step.run(*slices, *invariants, *now)
        found.steps.append({name: step.values[name] for name in step.values if keep is None or name in keep})
    return found


def _scaled(leaf: Any, scale: float) -> Any:
    value = doubled(leaf)
    return value * scale if isinstance(value, Tensor) and value.is_floating_point() else value
