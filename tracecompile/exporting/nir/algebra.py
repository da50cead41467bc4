"""What the core of a layer computes, as polynomials: read off its graph, whoever wrote it."""

from __future__ import annotations

from collections.abc import Callable, Mapping
from dataclasses import dataclass, field
from typing import Any

import torch
from torch import fx

from tracecompile.analysis.linearity import operation_name
from tracecompile.analysis.pointwise import is_surrogate
from tracecompile.errors import SourceLine, UnsupportedOperation
from tracecompile.exact import exact_value
from tracecompile.exporting.nir.opaque import OpaqueNeurons, threshold_of
from tracecompile.exporting.nir.polynomial import SPIKE, Condition, NotLinear, Polynomial
from tracecompile.layers import Layer
from tracecompile.neuron_step import NeuronStep
from tracecompile.operations import operation_of
from tracecompile.program import StepProgram

Value = Any
"""A polynomial where it depends on a current or a state, else what it is."""
SAME = ("clone", "contiguous", "alias", "detach", "copy", "to", "type", "type_as", "float", "double", "positive",
        "expand_as", "bool", "dropout")  # fmt: skip
"""Operations that hand on the numbers of their first operand."""
PROBES = (1e-12, 1e-6, 1e-3, 0.1, 1.0, 10.0, 1e3)


@dataclass
class Neuron:
    """What a core computes.

    Attributes:
        layer: Whose core it is.
        outputs, following: Its outputs, and the next value of each state, by name.
        conditions: Of the spikes.
        lines: The user's lines of the outputs and of the next states, by name.
    """

    layer: Layer
    outputs: dict[str, Polynomial] = field(default_factory=dict)
    following: dict[str, Polynomial] = field(default_factory=dict)
    conditions: dict[str, Condition] = field(default_factory=dict)
    lines: dict[str, SourceLine | None] = field(default_factory=dict)


def neuron_of(program: StepProgram, layer: Layer, statics: Mapping[str, Any]) -> Neuron:
    """Returns what the core of a layer computes.

    Raises:
        UnsupportedOperation: It has an operation that makes no polynomial of polynomials; names the user's line.
    """
    assert layer.core is not None
    found, opaque = Neuron(layer), OpaqueNeurons()
    late = {name for name, kind in zip(layer.states, layer.state_kinds, strict=False) if kind == "spikes"}
    values: dict[fx.Node, Value] = {}
    for node in layer.core.graph.nodes:
        if node.op == "placeholder":
            name = SPIKE + node.name if node.name in late else node.name
            values[node] = statics[node.name] if node.name in layer.core_statics else Polynomial.symbol(name)
        elif node.op == "output":
            outputs, following = node.args[0]
            found.outputs = {key: Polynomial.of(values[x]) for key, x in zip(layer.outputs, outputs, strict=True)}
            found.following = {key: Polynomial.of(values[x]) for key, x in zip(layer.states, following, strict=True)}
            results = zip((*layer.outputs, *layer.states), (*outputs, *following), strict=True)
            found.lines = {name: made.meta.get("where") for name, made in results}
        else:
            values[node] = _value(program, node, values, found, opaque)
    return found


def _value(
    program: StepProgram, node: fx.Node, values: Mapping[fx.Node, Value], neuron: Neuron, opaque: OpaqueNeurons
) -> Value:
    args: list[Any] = [values[each] if isinstance(each, fx.Node) else each for each in node.args]
    kwargs = {key: values[each] if isinstance(each, fx.Node) else each for key, each in node.kwargs.items()}
    moving = [each for each in (*args, *kwargs.values()) if isinstance(each, Polynomial)]
    if not moving and any(isinstance(values[each], Polynomial) for each in node.all_input_nodes):
        raise _unknown(program, node, f"{operation_name(program, node)} of several values")
    module = program.resolve(str(node.target)) if node.op == "call_module" else None
    try:
        if isinstance(module, NeuronStep):
            return opaque.value(module, node, args, neuron.conditions)
        if is_surrogate(program, node) and moving:
            return _spike(program, node, args, neuron)
        name = operation_of(node, module).name
        if moving and (name in SAME or node.target is exact_value):
            return args[0]
        if name in LIKE and moving:
            return torch.full((), LIKE[name], dtype=torch.float64)
        if not moving:
            return _run(program, node, *fx.map_arg((node.args, node.kwargs), values.__getitem__))
        if name in COMPARED:
            return _compared(name, node, args, neuron)
        if name in POLYNOMIAL:
            return POLYNOMIAL[name](*(Polynomial.of(each) for each in args), **kwargs)
    except (NotLinear, TypeError, ValueError) as fault:
        raise _unknown(program, node, str(fault)) from fault
    raise _unknown(program, node, operation_name(program, node))


def _unknown(program: StepProgram, node: fx.Node, what: str) -> UnsupportedOperation:
    otherwise = 'xport it as ONNX, which takes any step: tracecompile.export(net, "onnx").'
    subtract = "Reset by subtracting the threshold (v_reset=None in SpikingJelly), or e"
    return UnsupportedOperation(
        f"No neuron of NIR computes {what}: they add up currents and states, spike at a threshold and subtract it.",
        f"{subtract if 'reset' in what else 'E'}{otherwise}",
        node.meta.get("where"),
    )


def _run(program: StepProgram, node: fx.Node, args: Any, kwargs: Any) -> Any:
    with torch.no_grad():
        if node.op == "call_method":
            return getattr(args[0], str(node.target))(*args[1:], **kwargs)
        called: Any = program.resolve(str(node.target)) if node.op == "call_module" else node.target
        return called(*args, **kwargs)


def _spike(program: StepProgram, node: fx.Node, args: list[Any], neuron: Neuron) -> Polynomial:
    """Returns the spike of a surrogate: a step of height 1 at zero, whatever its gradient."""
    leaf = program.resolve(str(node.target))
    if not isinstance(args[0], Polynomial) or any(isinstance(each, Polynomial) for each in args[1:]):
        raise ValueError(f"{operation_name(program, node)}, which takes several values of the neuron")

    def made(value: float) -> float:
        with torch.no_grad():
            return float(leaf(torch.tensor([value], dtype=torch.float64), *args[1:]))

    # A surrogate that is given its threshold spikes there, and not at zero.
    at, at_zero = (0.0, made(0.0) == 1.0) if made(-PROBES[0]) != made(PROBES[0]) else threshold_of(made)
    below, above = [made(at - each) for each in PROBES], [made(at + each) for each in PROBES]
    if any(below) or any(each != 1.0 for each in above):
        raise ValueError("spikes of another kind than 0 and 1")
    return _new(neuron, node, args[0] - Polynomial.of(at), at_zero)


def _new(neuron: Neuron, node: fx.Node, argument: Polynomial, at_zero: bool) -> Polynomial:
    name = f"{SPIKE}{node.name}"
    neuron.conditions[name] = Condition(argument, at_zero)
    return Polynomial.symbol(name)


def _compared(name: str, node: fx.Node, args: list[Any], neuron: Neuron) -> Polynomial:
    one, other = map(Polynomial.of, args[:2])
    return _new(neuron, node, one - other if name in ("gt", "ge") else other - one, name in ("ge", "le"))


def _add(one: Polynomial, other: Polynomial, alpha: Any = 1) -> Polynomial:
    return one + other.times(alpha)


def _sub(one: Polynomial, other: Polynomial, alpha: Any = 1) -> Polynomial:
    return one - other.times(alpha)


def _div(one: Polynomial, other: Polynomial) -> Polynomial:
    if other.symbols:
        raise NotLinear("a quotient by a value of the neuron")
    return one.times(1.0 / other.at())


def _where(condition: Polynomial, one: Polynomial, other: Polynomial) -> Polynomial:
    if condition.symbols - condition.spikes:
        raise NotLinear("a choice by something else than spikes")
    return condition * one + (Polynomial.of(1.0) - condition) * other


def _not(value: Polynomial) -> Polynomial:
    return Polynomial.of(1.0) - value


LIKE = {"zeros_like": 0.0, "ones_like": 1.0, "new_zeros": 0.0, "new_ones": 1.0}
COMPARED = ("gt", "ge", "lt", "le")
POLYNOMIAL: dict[str, Callable[..., Polynomial]] = {
    "add": _add,
    "sub": _sub,
    "rsub": lambda one, other: other - one,
    "mul": lambda one, other: one * other,
    "div": _div,
    "neg": lambda value: value.times(-1.0),
    "where": _where,
    "masked_fill": lambda value, mask, number: _where(mask, number, value),
    "logical_not": _not,
    "bitwise_not": _not,
    "logical_and": lambda one, other: one * other,
    "addcmul": lambda value, one, other, value_=1: value + one * other,
    "lerp": lambda one, other, weight: one + weight * (other - one),
}
"""Operations that make polynomials of polynomials, by their names in the table of operations."""
