"""Which operations act on every neuron by itself, and which of them spike."""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

import torch
from torch import fx

from tracecompile.analysis.core_operators import acts_on_elements, has_shape_of_operands
from tracecompile.neuron_step import NeuronStep
from tracecompile.operations import Fact, has, operation_of
from tracecompile.program import TWIN_OF, StepProgram, example_value, is_tensor

SCALES = tuple(10.0**power for power in range(9))
"""By how much the range in which a surrogate is probed is widened while nothing changes in it."""


def is_surrogate(program: StepProgram, node: fx.Node) -> bool:
    """Tells whether a node is one of the opaque surrogate functions that capture kept."""
    leaf = program.leaves.get(str(node.target)) if node.op == "call_module" else None
    return leaf is not None and TWIN_OF not in vars(leaf)


def is_comparison(node: fx.Node) -> bool:
    """Tells whether a node's value is piecewise constant in its input, with few levels."""
    return has(node, Fact.THRESHOLD)


def is_pointwise(program: StepProgram, node: fx.Node) -> bool:
    """Tells whether every element of a node's value depends on the same element of its inputs alone."""
    if not isinstance(example_value(node), torch.Tensor):
        return False
    if node.op != "call_module":
        return acts_alone(node) and has_shape_of_operands(node)
    module = program.resolve(str(node.target))
    if is_surrogate(program, node):
        # Looked into, it would lose its own backward.
        return acts_elementwise(module, node) and has_shape_of_operands(node)
    if not has_shape_of_operands(node) or any(True for _ in module.parameters()) or any(True for _ in module.buffers()):
        return False
    facts = operation_of(node, module).facts
    return Fact.ELEMENTWISE in facts or (Fact.RANDOM not in facts and acts_on_elements(node, module))


def acts_alone(node: fx.Node) -> bool:
    """Tells whether a function or method acts on every element of its operands by itself, whatever the program."""
    if node.op not in ("call_function", "call_method"):
        return False
    return has(node, Fact.ELEMENTWISE) or (is_tensor(node) and acts_on_elements(node))


def acts_elementwise(function: Callable[..., Any], node: fx.Node) -> bool:
    """Probes an opaque function: permuting the elements of its inputs must permute those of its value."""
    values = [example_value(argument) if isinstance(argument, fx.Node) else argument for argument in node.args]
    tensors = [value for value in values if isinstance(value, torch.Tensor)]
    size = 64
    order = torch.arange(size - 1, -1, -1, device=tensors[0].device)
    probes = [torch.linspace(-2 - i, 2 + i, size).to(tensors[0]) for i, _ in enumerate(tensors)]

    def call(inputs: list[torch.Tensor]) -> Any:
        remaining = iter(inputs)
        return function(*[next(remaining) if isinstance(value, torch.Tensor) else value for value in values])

    with torch.no_grad():
        straight, reversed_ = call(probes), call([probe[order] for probe in probes])
    return isinstance(straight, torch.Tensor) and straight.shape == (size,) and torch.equal(straight[order], reversed_)


def emits_spikes(program: StepProgram, node: fx.Node) -> bool:
    """Probes a surrogate on [-2, 2]: a spike function takes a few integer values and takes more than one.

    One that is given its threshold may do so further out alone.
    """
    leaf = program.resolve(str(node.target)) if is_surrogate(program, node) else None
    if isinstance(leaf, NeuronStep):
        return leaf.emits_spikes([example_value(source) for source in node.all_input_nodes])
    values: list[Any] = [example_value(arg) if isinstance(arg, fx.Node) else arg for arg in node.args]
    wide = [place for place, value in enumerate(values) if isinstance(value, torch.Tensor) and value.numel() > 1]
    if leaf is None or len(wide) > 1:
        # A number in a tensor may come with it, such as the steepness of a surrogate.
        return False
    place = wide[0] if wide else 0
    probe = torch.linspace(-2, 2, 257).to(values[place])
    for scale in SCALES:
        with torch.no_grad():
            result = leaf(*values[:place], scale * probe, *values[place + 1 :])
        if not isinstance(result, torch.Tensor) or result.shape != probe.shape:
            return False
        levels = torch.unique(result)
        if len(levels) > 1:
            return len(levels) <= 16 and torch.equal(levels, levels.round())
    return False
