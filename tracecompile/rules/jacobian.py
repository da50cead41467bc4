"""Forward-mode differentiation of a core: the graph that computes a step and its per-neuron derivatives.

A core is elementwise, so its Jacobian is a handful of numbers per neuron: the derivative of every result (outputs and
next states) by every variable (currents, states, parameters). They are written down symbolically, once, from the user's
own operations; ``detach`` and comparisons have no derivative, surrogates have that of their own ``backward``.
"""

from __future__ import annotations

import operator
from collections.abc import Callable
from typing import Any

import torch
from torch import fx, nn

from tracecompile.errors import UnsupportedOperation
from tracecompile.layers import Jacobian
from tracecompile.neuron_step import NeuronStep
from tracecompile.operations import FLAT, has
from tracecompile.program import StepProgram, example_value
from tracecompile.rules.elementary import Derivative, Tangent, rule_of
from tracecompile.rules.opaque import StepWithSlopes
from tracecompile.rules.slopes import WithSlopes


def differentiate(program: StepProgram, core: fx.GraphModule, variables: frozenset[str]) -> Jacobian:
    """Builds the Jacobian of a core.

    Args:
        program: Owner of the modules that the core calls.
        core: (*placeholders) -> (outputs, next states).
        variables: Placeholders to differentiate by.

    Returns:
        A Jacobian whose graph maps the core's arguments to ((outputs, next states), derivatives).
    """
    builder = _Builder(program, core, variables)
    return builder.build()


class _Builder:
    def __init__(self, program: StepProgram, core: fx.GraphModule, variables: frozenset[str]) -> None:
        self.program = program
        self.core = core
        self.variables = variables
        self.graph = fx.Graph()
        self.value: dict[fx.Node, fx.Node] = {}
        self.tangent: dict[fx.Node, Tangent] = {}
        self.owned: dict[str, nn.Module] = {}
        self.steps: dict[Any, fx.Node] = {}
        self.written: dict[Any, fx.Node] = {}
        """Products and sums that are there already: currents that act alike have the same derivatives."""

    def build(self) -> Jacobian:
        for node in self.core.graph.nodes:
            if node.op == "placeholder":
                self.value[node] = self.graph.placeholder(node.name)
                varies = node.name in self.variables and is_differentiable(node)
                self.tangent[node] = {node.name: 1} if varies else {}
            elif node.op == "output":
                return self._finish(node)
            else:
                self.tangent[node] = self._visit(node)
        raise AssertionError("a graph without an output node")

    def _finish(self, output: fx.Node) -> Jacobian:
        result: Any = output.args[0]
        outputs: tuple[fx.Node, ...] = result[0]
        states: tuple[fx.Node, ...] = result[1]
        results = [(node.name, node) for node in outputs]
        results += [(f"next:{position}", node) for position, node in enumerate(states)]
        derivatives: list[fx.Node] = []
        rows: dict[tuple[str, str], int | float] = {}
        constants: dict[tuple[str, str], float] = {}
        for name, node in results:
            for variable, slope in self.tangent[node].items():
                if isinstance(slope, fx.Node):
                    if slope not in derivatives:
                        derivatives.append(slope)
                    rows[name, variable] = derivatives.index(slope)
                else:
                    constants[name, variable] = float(slope)
        values = fx.node.map_arg((outputs, states), self.value.__getitem__)
        self.graph.output((values, tuple(derivatives)))
        module = fx.GraphModule(self.owned, self.graph, "Jacobian")
        module.graph.eliminate_dead_code()
        module.recompile()
        return Jacobian(module, rows | constants)

    # One node.

    def _visit(self, node: fx.Node) -> Tangent:
        flows = [s for s in node.all_input_nodes if self.tangent[s]]
        if not flows or has(node, FLAT) or not is_differentiable(node):
            self._copy(node)
            return {}
        if node.op == "call_module" and isinstance(leaf := self.program.resolve(str(node.target)), NeuronStep):
            return self._by_step(node, leaf)
        rule = rule_of(node)
        if rule is not None and not node.kwargs:
            self._copy(node)
            found = rule(self, node, *node.args)
            if found is not None:
                return found
        return self._by_product_of_ones(node)

    def _copy(self, node: fx.Node) -> fx.Node:
        copy = self.graph.node_copy(node, self.value.__getitem__)
        self.value[node] = copy
        if node.op in ("call_module", "get_attr"):
            self.owned[str(node.target)] = self.program.resolve(str(node.target))
        return copy

    def _by_step(self, node: fx.Node, leaf: NeuronStep) -> Tangent:
        """Differentiates one result of a step that is kept whole; all its results share one call."""
        arguments: tuple[Any, ...] = node.args
        wanted = tuple(i for i, a in enumerate(arguments) if isinstance(a, fx.Node) and self.tangent[a])
        key = (id(leaf.step), arguments)
        if key not in self.steps:
            target = f"slopes_{node.name}"
            self.owned[target] = StepWithSlopes(leaf.step, wanted)
            self.steps[key] = self.graph.call_module(target, fx.node.map_arg(arguments, self.value.__getitem__))
        call = self.steps[key]
        self.value[node] = self.call(operator.getitem, call, leaf.position)
        first = leaf.results + leaf.position * len(wanted)
        slopes = [self.call(operator.getitem, call, first + number) for number in range(len(wanted))]
        return self.total(*((slope, self.tangent[arguments[i]]) for slope, i in zip(slopes, wanted, strict=True)))

    def _by_product_of_ones(self, node: fx.Node) -> Tangent:
        given: dict[int | str, Any] = dict(enumerate(node.args))
        given.update(node.kwargs)
        wanted = tuple(key for key, a in given.items() if isinstance(a, fx.Node) and self.tangent[a])
        if {source for source in node.all_input_nodes if self.tangent[source]} - {given[key] for key in wanted}:
            raise UnsupportedOperation(
                "An operation on the state of a neuron takes several values in a list.",
                "Compute with each of them by itself.",
                node.meta.get("where"),
            )
        operation = self.program.resolve(str(node.target)) if node.op == "call_module" else node.target
        target = f"slopes_{node.name}"
        self.owned[target] = WithSlopes(operation, node.op, wanted)  # type: ignore[arg-type]
        args = fx.node.map_arg(node.args, self.value.__getitem__)
        kwargs = fx.node.map_arg(node.kwargs, self.value.__getitem__)
        call = self.graph.call_module(target, args, kwargs)
        self.value[node] = self.graph.call_function(operator.getitem, (call, 0))
        slopes = [self.graph.call_function(operator.getitem, (call, i + 1)) for i in range(len(wanted))]
        return self.total(*((slope, self.tangent[given[key]]) for slope, key in zip(slopes, wanted, strict=True)))

    # Arithmetic on derivatives, with the zeros and ones left out.

    def total(self, *terms: tuple[Derivative, Tangent]) -> Tangent:
        """Returns the sum of factor times tangent."""
        found: Tangent = {}
        for factor, tangent in terms:
            for variable, slope in tangent.items():
                product = self.times(factor, slope)
                found[variable] = self.plus(found[variable], product) if variable in found else product
        return {variable: slope for variable, slope in found.items() if isinstance(slope, fx.Node) or slope != 0}

    def times(self, left: Derivative, right: Derivative) -> Derivative:
        """Returns a product."""
        if not isinstance(left, fx.Node) and not isinstance(right, fx.Node):
            return left * right
        for one, other in ((left, right), (right, left)):
            if not isinstance(one, fx.Node):
                if one in (0, 1):
                    return other if one == 1 else 0
                if one == -1:
                    return self._once(operator.neg, other)
        return self._once(operator.mul, left, right)

    def plus(self, left: Derivative, right: Derivative) -> Derivative:
        """Returns a sum."""
        if not isinstance(left, fx.Node) and not isinstance(right, fx.Node):
            return left + right
        if left == 0 or right == 0:
            return right if left == 0 else left
        return self._once(operator.add, left, right)

    def _once(self, function: Callable[..., Any], *args: Derivative) -> fx.Node:
        key = (function, *args)
        if key not in self.written:
            self.written[key] = self.graph.call_function(function, args)
        return self.written[key]

    def of(self, argument: Any) -> Tangent:
        """Returns the tangent of an argument."""
        return self.tangent[argument] if isinstance(argument, fx.Node) else {}

    def val(self, argument: Any) -> Any:
        """Returns the value of an argument in the new graph."""
        return self.value[argument] if isinstance(argument, fx.Node) else argument

    def call(self, function: Callable[..., Any], *args: Any) -> fx.Node:
        """Adds a call."""
        return self.graph.call_function(function, args)


def is_differentiable(node: fx.Node) -> bool:
    """Tells whether a derivative can pass through a node: sizes, truths and whole numbers have none."""
    value = example_value(node)
    return value is None or (isinstance(value, torch.Tensor) and value.is_floating_point())
