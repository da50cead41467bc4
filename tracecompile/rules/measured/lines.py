"""The measured rule: a core whose step moves on the derivatives of its states, and sums up those of its outputs.

Per step, one line each, with J the Jacobian of the core, I a current and p a parameter of it,

    e^v  <-  J_ss e^v + J_sv         tangent of the states by the variable v = I, p since the last fold, from zero
    P    <-  J_ss P                  by the states where the last fold left them, from one
    R^v  <-  R^v + J_ys e^v + J_yv   response: the answer of the step's outputs, summed since the last fold
    Q    <-  Q + J_ys P

(and for a gain of a current, which some parameter of its synapse is: J_sv = J_sI I)

so that what a step costs does not depend on the number of bins: what happened before the last fold acts through P and Q
alone, and the bins themselves are touched once each, when a bin ends (see ``tracecompile.runtime.fold``).
"""

from __future__ import annotations

import operator
from collections.abc import Callable, Collection
from dataclasses import dataclass
from typing import Any

import torch
from torch import fx

from tracecompile.layers import Accrual, Jacobian, Layer, Pair
from tracecompile.program import StepProgram
from tracecompile.rules.accumulation import accumulated, decayed, precise, product_accumulated, spread
from tracecompile.rules.jacobian import differentiate, is_differentiable
from tracecompile.rules.measured.common import alike_currents, is_invariant
from tracecompile.rules.measured.shared import SharedSums, Term, is_product

FROM = "from:"
"""Prefix of the variables that stand for a state where the last fold left it."""
SCALED = "scaled:"
"""Prefix of the variables that stand for a factor of one on a current."""


@dataclass(frozen=True)
class MeasuredLines:
    """A core with its derivatives, and what they move on: the tangents of its states and the responses of its outputs.

    Attributes:
        graph: (*currents, *states, *statics, *tangents, *responses) -> ((outputs, next states), (*tangents,
            *responses), answers of this step as in the responses, derivatives).
        rows: As in a Jacobian, of the derivatives.
        tangents, responses: What is carried, in this order.
        alike: Currents that act as another one does, by which the tangents and responses go, at every step.
        invariant: Whether the derivatives by currents and states are the same at every step.
    """

    graph: fx.GraphModule
    rows: dict[Pair, int | float]
    tangents: tuple[Accrual, ...]
    responses: tuple[Accrual, ...]
    alike: dict[str, str]
    invariant: bool


def measured(program: StepProgram, layer: Layer, trainable: frozenset[str]) -> MeasuredLines:
    """Returns the core of a layer with what the rule carries.

    Args:
        program: Owner of the modules that the core calls.
        layer: A layer with a core.
        trainable: Static values that depend on a parameter.
    """
    assert layer.core is not None
    parameters = [name for name in layer.core_statics if name in trainable]
    variables = frozenset([*layer.currents, *layer.states, *parameters])
    jacobian = differentiate(program, layer.core, variables)
    return _Writer(layer, jacobian, parameters, program.draws.names).written()


class _Writer:
    """Writes the lines of one layer behind those of its Jacobian."""

    def __init__(self, layer: Layer, jacobian: Jacobian, parameters: list[str], drawn: Collection[str]) -> None:
        self.layer, self.jacobian, self.drawn, self.decay = layer, jacobian, drawn, layer.decay
        floating = {node.name for node in layer.core.graph.nodes if is_differentiable(node)} if layer.core else set()
        self.states = [state for state in layer.states if state in floating]
        self.alike = alike_currents(layer, jacobian.rows)
        currents = [current for current in layer.currents if current not in self.alike]
        self.gains = {f"{SCALED}{scale.current}": scale.current for scale in layer.scales if layer.decay is None}
        self.variables = (*currents, *parameters, *self.gains, *(f"{FROM}{state}" for state in self.states))
        self.results = {state: f"next:{place}" for place, state in enumerate(layer.states)}
        self.graph = fx.Graph()
        self.values: dict[fx.Node, fx.Node] = {}
        self.slopes: dict[Pair, fx.Node | float] = {}
        self.shared = SharedSums()
        self.carried: dict[Pair, fx.Node] = {}
        self.called: dict[Any, fx.Node] = {}
        """Lines that are there already: what a state and an output have in common is computed once."""
        self.note = f"insert_rate_inversion: derivative of {layer.name} and what it does to the outputs"

    def written(self) -> MeasuredLines:
        """Returns the graph with its lines."""
        source = self.jacobian.graph.graph
        output = next(node for node in reversed(source.nodes) if node.op == "output")
        given = [node for node in source.nodes if node.op == "placeholder"]
        tangents, responses = self._tangents(), self._responses()
        self.values.update((node, self.graph.node_copy(node)) for node in given)
        self.currents = {node.name: self.values[node] for node in given}
        totals = {}
        for accrual in (*tangents, *responses):
            totals[accrual.pair] = self.graph.placeholder(accrual.name)
        self.carried = {accrual.pair: totals[accrual.pair] for accrual in tangents}
        self._copy(source, output)
        (outputs, states), derivatives = fx.map_arg(output.args[0], self.values.__getitem__)
        made = dict(zip(self.layer.outputs, outputs, strict=True))
        made |= dict(zip(self.results.values(), states, strict=True))
        self._take_slopes(derivatives, made)
        moved = [
            self._change((self.results[state], variable), made[self.results[state]])
            for variable, state in (accrual.pair for accrual in tangents)
        ]
        answers = [self._change(accrual.pair, made[accrual.pair[0]]) for accrual in responses]
        for accrual, answer in zip(responses, answers, strict=True):
            answer.meta.setdefault("means", ("answer", *accrual.pair))
        sums = [self._summed(totals[accrual.pair], answer) for accrual, answer in zip(responses, answers, strict=True)]
        results = ((outputs, states), (*moved, *sums), tuple(answers), derivatives)
        self.graph.output(results)
        for line in [line for line in self.called.values() if not line.users]:
            self.graph.erase_node(line)  # a slope that is a product, and went into another line by its factors
        module = fx.GraphModule(self.jacobian.graph, self.graph, "Measured")
        invariant = is_invariant(self.layer, self.jacobian, self.drawn)
        return MeasuredLines(module, self.jacobian.rows, tangents, responses, self.alike, invariant)

    def _copy(self, source: fx.Graph, output: fx.Node) -> None:
        """Adds the lines of the Jacobian: what the core itself is made of, then what is of the derivatives alone."""
        original = {} if self.layer.core is None else {node.name: node for node in self.layer.core.graph.nodes}
        values: Any = output.args[0]
        needed = list[fx.Node]()
        fx.map_arg(values[0], needed.append)
        reached = set(needed)
        for node in reversed(source.nodes):
            if node in reached:
                reached.update(node.all_input_nodes)
        lines = [node for node in source.nodes if node.op not in ("placeholder", "output")]
        for node in (*filter(reached.__contains__, lines), *(node for node in lines if node not in reached)):
            copy = self.values[node] = self.graph.node_copy(node, self.values.__getitem__)
            if node not in reached:
                copy.meta["pass"] = self.note
            elif "where" not in node.meta:  # an operation that comes with its slopes, and its value
                call = node if node.op == "call_module" else node.all_input_nodes[0]
                known = original.get(str(call.target).removeprefix("slopes_"))
                copy.meta.update({} if known is None else {key: known.meta.get(key) for key in ("where", "place")})

    # What is carried at all: what is zero at every step is left out.

    def _tangents(self) -> tuple[Accrual, ...]:
        found = {(f"{FROM}{state}", state) for state in self.states}
        pairs = [(variable, state) for variable in self.variables for state in self.states]
        while True:
            more = {pair for pair in pairs if self._answers(self.results[pair[1]], pair[0], found)}
            if more <= found:
                break
            found |= more
        self.reached = found
        name = self.layer.name
        return tuple(
            Accrual(self._named("tangent", state, variable), "tangent", name, (variable, state), state)
            for variable, state in pairs
            if (variable, state) in found
        )

    def _responses(self) -> tuple[Accrual, ...]:
        pairs = ((output, variable) for output in self.layer.outputs for variable in self.variables)
        return tuple(
            Accrual(
                self._named("response", output, variable),
                "response",
                self.layer.name,
                (output, variable),
                output,
                self.decay,
            )
            for output, variable in pairs
            if self._answers(output, variable, self.reached)
        )

    def _answers(self, result: str, variable: str, reached: set[Pair]) -> bool:
        rows = self.jacobian.rows
        through = any((result, state) in rows and (variable, state) in reached for state in self.states)
        return (result, self.gains.get(variable, variable)) in rows or through

    @staticmethod
    def _named(role: str, result: str, variable: str) -> str:
        how = {FROM: "from_", SCALED: "by_scaled_"}.get(f"{variable.partition(':')[0]}:", "by_")
        return f"{role}_{result}_{how}{variable.rpartition(':')[2]}"

    # The lines.

    def _take_slopes(self, derivatives: Any, made: dict[str, fx.Node]) -> None:
        for pair, row in self.jacobian.rows.items():
            self.shared.take(pair, derivatives[row] if isinstance(row, int) else row)
            if not isinstance(row, int):
                self.slopes[pair] = row
                continue
            slope = self.slopes[pair] = self._line(precise, derivatives[row], made[pair[0]])
            place = pair[0].removeprefix("next:")
            result = pair[0] if place == pair[0] else self.layer.states[int(place)]
            slope.meta.setdefault("means", ("slope", result, pair[1]))
        for gain, current in self.gains.items():
            value = self.currents[current]
            acting = {pair[0]: slope for pair, slope in self.slopes.items() if pair[1] == current}
            for result, acts in acting.items():
                self.slopes[result, gain] = self._product(acts, self._line(precise, value, value))

    def _line(self, function: Callable[..., Any], *args: Any) -> fx.Node:
        """Adds a line, or returns the one that is there."""
        if (function, args) not in self.called:
            self.called[function, args] = self.graph.call_function(function, args)
            self.called[function, args].meta["pass"] = self.note
        return self.called[function, args]

    def _change(self, pair: Pair, like: fx.Node) -> fx.Node:
        """Returns the derivative of a result by a variable: at once, and through the states of the step before."""
        result, variable = pair
        through = [((result, state), self.carried.get((variable, state))) for state in self.states]
        every: list[Term] = [(pair, None), *(term for term in through if term[1] is not None)]
        terms = [term for term in every if term[0] in self.slopes]
        total: fx.Node | float | None = None
        if parts := self.shared.split(terms):
            total = self._line(operator.mul, self._line(precise, parts[0], like), parts[1])
        else:
            for each, tangent in terms:
                slope = self.slopes[each]
                total = slope if tangent is None else self._plus_product(total, slope, tangent)
            if isinstance(total, fx.Node):
                self.shared.note(terms, total)
        # A state that does not go on from its last value forgets at once.
        return self._line(spread, 0.0 if total is None else total, like)

    def _plus_product(self, total: fx.Node | float | None, slope: fx.Node | float, tangent: fx.Node) -> fx.Node:
        if isinstance(total, fx.Node) and isinstance(slope, fx.Node):
            return self._line(torch.addcmul, total, slope, tangent)
        product = self._product(slope, tangent)
        return product if total is None else self._line(operator.add, total, product)

    def _product(self, slope: fx.Node | float, value: fx.Node) -> fx.Node:
        return value if slope == 1.0 else self._line(operator.mul, slope, value)

    def _summed(self, total: fx.Node, answer: fx.Node) -> fx.Node:
        derivative, value = answer.args
        if self.decay is not None:
            return self._line(decayed, total, answer, self.decay)
        if isinstance(derivative, fx.Node) and is_product(derivative):
            return self._line(product_accumulated, total, *derivative.args, value)
        return self._line(accumulated, total, answer)
