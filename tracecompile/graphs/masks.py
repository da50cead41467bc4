"""Splits what draws and computes at once into a draw and plain arithmetic."""

from __future__ import annotations

import operator
from collections.abc import Callable, Collection, Iterable
from typing import Any

import torch
from torch import Tensor, fx, nn

from tracecompile.capture.tracing.functionalize import in_place_on_copy
from tracecompile.drawn import FILLS, drawn
from tracecompile.errors import UnsupportedOperation
from tracecompile.operations import SHAPE_ONLY, Fact, has, operation_of
from tracecompile.program import StepProgram, example_value

LINEAR = frozenset(("dropout", "dropout1d", "dropout2d", "dropout3d", "feature_dropout"))
"""Dropouts that multiply by a mask and do nothing else."""


SATURATED = 1.7580993408473766
"""By how much a dropped value lies below zero under alpha dropout; torch has the same number."""


_COMPARED = (torch.float32, torch.float64)


class Masks:
    """A step in which every random number is drawn by a node of its own, in the order of the model.

    A dropout is a mask times what it takes: the mask is the dropout of ones, so that it is the model's bit for bit on
    every device, and one in evaluation. Where a probability is computed by the step, ``bernoulli`` compares it with a
    uniform number, as torch itself does on the CPU.

    Attributes:
        graph: The step.
        draws: Its nodes that draw.
    """

    def __init__(self, program: StepProgram) -> None:
        """Rewrites the step of a captured program, which is left as it is."""
        self.program = program
        self.graph = fx.Graph()
        self.draws: list[fx.Node] = []
        self._taken = {node.name for node in program.step.graph.nodes}
        values: dict[fx.Node, fx.Node] = {}
        for node in program.step.graph.nodes:
            values[node] = self._copied(node, values)

    def _copied(self, node: fx.Node, values: dict[fx.Node, fx.Node]) -> fx.Node:
        module = self.program.resolve(str(node.target)) if node.op == "call_module" else None
        operation = operation_of(node, module)
        args, kwargs = fx.map_arg((node.args, node.kwargs), values.__getitem__)
        draws = bool(node.meta.get("draws"))
        if operation.name in LINEAR and (draws or (module is not None and Fact.DROPS in operation.facts)):
            return self._dropout(node, module, args, kwargs)
        if operation.name == "alpha_dropout" and draws and module is None:
            return self._alpha_dropout(node, args, kwargs)
        if not draws:
            return self.graph.node_copy(node, values.__getitem__)
        if operation.name == "bernoulli" and isinstance(args[0], fx.Node) and self._is_compared(node):
            return self._compared(node, args[0])
        if node.target is in_place_on_copy and args[1] in FILLS:
            made = self.graph.create_node("call_function", drawn, args, kwargs, node.name)
            made.meta = dict(node.meta)
        else:
            made = self.graph.node_copy(node, values.__getitem__)
        self.draws.append(made)
        return made

    def _dropout(self, node: fx.Node, module: nn.Module | None, args: Any, kwargs: dict[str, Any]) -> fx.Node:
        if module is not None and _has_hooks(module):
            raise UnsupportedOperation(
                f"The layer {node.target} draws its mask before the step is computed: a hook of it would see no value.",
                "Remove the hook, or put it on the layer before or after.",
                node.meta.get("where"),
            )
        kwargs = {key: value for key, value in kwargs.items() if key not in ("inplace", "input")}
        given = args[0] if args else node.kwargs["input"]
        ones = self._added(node, "ones", torch.ones_like, (given,), torch.ones_like)
        target: Any = node.target
        mask = self.graph.create_node(node.op, target, (ones, *args[1:]), kwargs, self._name(node, "mask"))
        mask.meta = {"val": torch.ones_like(example_value(node)), "where": node.meta.get("where"), "draws": True}
        self.draws.append(mask)
        product = self.graph.create_node("call_function", operator.mul, (given, mask), {}, node.name)
        product.meta = {**node.meta, "draws": False}
        return product

    def _is_compared(self, node: fx.Node) -> bool:
        """Tells whether a probability is computed by the step, and torch compares it with uniform numbers one by one.

        It does so on the CPU.
        """
        if of_the_step(self.program, read_by_value(node.all_input_nodes)) is None:
            return False
        value = example_value(node)
        alone = len(node.args) == 1 and not node.kwargs
        return alone and isinstance(value, Tensor) and value.device.type == "cpu" and value.dtype in _COMPARED

    def _alpha_dropout(self, node: fx.Node, args: Any, kwargs: dict[str, Any]) -> fx.Node:
        """Writes down what torch computes: what is dropped takes the value of a saturated neuron; all is scaled."""
        given = args[0] if args else kwargs["input"]
        share = args[1] if len(args) > 1 else kwargs.get("p", 0.5)
        scale = ((SATURATED**2 * share + 1) * (1 - share)) ** -0.5
        kept = self._added(node, "kept", drawn, (given, "bernoulli_", 1 - share), torch.ones_like)
        kept.meta["draws"] = True
        self.draws.append(kept)
        found: Any = kept
        for what, function, number in (
            ("dropped", operator.add, -1),
            ("saturated", operator.mul, SATURATED * scale),
            ("shift", operator.add, SATURATED * scale * share),
        ):
            found = self._added(node, what, function, (found, number), torch.zeros_like)
        scaled = self._added(node, "scale", operator.mul, (kept, scale), torch.ones_like)
        masked = self._added(node, "masked", operator.mul, (given, scaled), torch.zeros_like)
        made = self.graph.create_node("call_function", operator.add, (masked, found), {}, node.name)
        made.meta = {**node.meta, "draws": False}
        return made

    def _compared(self, node: fx.Node, share: fx.Node) -> fx.Node:
        uniform = self._added(node, "uniform", torch.rand_like, (share,), torch.zeros_like)
        uniform.kwargs = {"memory_format": torch.contiguous_format}
        uniform.meta["draws"] = True
        self.draws.append(uniform)
        below = self._added(node, "below", operator.lt, (uniform, share), lambda value: value > 0)
        value = example_value(node)
        found = self.graph.create_node("call_method", "to", (below, value.dtype), {}, node.name)
        found.meta = {**node.meta, "draws": False}
        return found

    def _added(
        self, node: fx.Node, what: str, function: Callable[..., Any], args: Any, example: Callable[[Tensor], Tensor]
    ) -> fx.Node:
        made = self.graph.create_node("call_function", function, args, {}, self._name(node, what))
        made.meta = {"val": example(example_value(node)), "where": node.meta.get("where")}
        return made

    def _name(self, node: fx.Node, what: str) -> str:
        return unused(f"{node.name}_{what}", self._taken)


def read_for_values(node: fx.Node) -> list[fx.Node]:
    """Returns what a node reads the values of: of some operands only shape, type and layout are read."""
    first = node.args[0] if node.args else None
    shape_only = has(node, SHAPE_ONLY)
    return [source for source in node.all_input_nodes if not (shape_only and source is first)]


def read_by_value(nodes: Iterable[fx.Node]) -> set[fx.Node]:
    """Returns the nodes whose values some nodes depend on, themselves included."""
    found: set[fx.Node] = set()
    waiting = list(nodes)
    while waiting:
        node = waiting.pop()
        if node not in found:
            found.add(node)
            waiting += read_for_values(node)
    return found


def of_the_step(program: StepProgram, nodes: Iterable[fx.Node]) -> fx.Node | None:
    """Returns which of some nodes is a state, or is computed by a layer; None where all are of the inputs alone."""
    states = {carry.placeholder for carry in program.carries}
    return next((n for n in nodes if n.op == "call_module" or (n.op == "placeholder" and n.name in states)), None)


def unused(name: str, taken: Collection[str]) -> str:
    """Returns a name that nothing has yet."""
    while name in taken:
        name += "_"
    return name


def _has_hooks(module: nn.Module) -> bool:
    kinds = ("_forward_hooks", "_forward_pre_hooks", "_backward_hooks", "_backward_pre_hooks")
    return any(getattr(module, kind) for kind in kinds)
