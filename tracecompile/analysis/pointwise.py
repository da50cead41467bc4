"""Which operations act on every neuron by itself, and which of them spike."""

from __future__ import annotations

import operator
from collections.abc import Callable
from typing import Any

import torch
from torch import fx, nn
from torch.nn import functional as F

from tracecompile.analysis.core_operators import acts_on_elements, has_shape_of_operands
from tracecompile.neuron_step import NeuronStep
from tracecompile.program import StepProgram, example_value, is_tensor

_NAMES = """
    add sub mul div true_divide neg rsub pow square sqrt rsqrt reciprocal exp expm1 log log1p sigmoid tanh relu clamp
    clamp_min clamp_max abs sign sgn floor ceil round trunc where heaviside maximum minimum gt ge lt le eq ne greater
    greater_equal less less_equal logical_and logical_or logical_not logical_xor lerp addcmul addcdiv softplus sin cos
    erf erfc logit sinc atan arctan fmod remainder detach clone masked_fill zeros_like ones_like full_like nan_to_num
    threshold multiply subtract divide negative absolute
""".split()
_METHODS_ONLY = "float double half bfloat16 to type type_as contiguous bool int long".split()
_OPERATORS = "add sub mul truediv neg pow gt ge lt le eq ne and_ or_ invert xor mod floordiv abs pos".split()
_ACTIVATIONS = """
    relu sigmoid tanh leaky_relu elu celu selu gelu silu mish softplus hardtanh hardsigmoid hardswish logsigmoid relu6
    softsign tanhshrink
""".split()
_COMPARING = "gt ge lt le eq ne greater greater_equal less less_equal heaviside sign sgn".split()

_FUNCTIONS: frozenset[Any] = frozenset(
    [getattr(torch, name) for name in _NAMES if hasattr(torch, name)]
    + [getattr(operator, name) for name in _OPERATORS]
    + [getattr(F, name) for name in _ACTIVATIONS]
)
_METHODS: frozenset[str] = frozenset(_NAMES + _METHODS_ONLY) | {f"__{name}__" for name in _OPERATORS}
_MODULES: tuple[type[nn.Module], ...] = (
    nn.Identity, nn.ReLU, nn.Sigmoid, nn.Tanh, nn.LeakyReLU, nn.ELU, nn.GELU, nn.SiLU, nn.Softplus, nn.Hardtanh,
    nn.ReLU6,
)  # fmt: skip
_DRAWING = (nn.modules.dropout._DropoutNd, nn.RReLU)
_COMPARISONS: frozenset[Any] = frozenset(
    getattr(place, name) for place in (torch, operator) for name in _COMPARING if hasattr(place, name)
)


def is_surrogate(program: StepProgram, node: fx.Node) -> bool:
    """Tells whether a node is one of the opaque surrogate functions that capture kept."""
    return node.op == "call_module" and str(node.target) in program.leaves


def is_comparison(node: fx.Node) -> bool:
    """Tells whether a node's value is piecewise constant in its input."""
    if node.op == "call_method":
        return node.target in _COMPARING
    return node.op == "call_function" and node.target in _COMPARISONS


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
    return isinstance(module, _MODULES) or (not isinstance(module, _DRAWING) and acts_on_elements(node, module))


def acts_alone(node: fx.Node) -> bool:
    """Tells whether a function or method acts on every element of its operands by itself, whatever the program."""
    if node.op == "call_method" and node.target in _METHODS:
        return True
    if node.op == "call_function" and node.target in _FUNCTIONS:
        return True
    return node.op in ("call_function", "call_method") and is_tensor(node) and acts_on_elements(node)


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
    """Probes a surrogate on [-2, 2]: a spike function takes a few integer values and takes more than one."""
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
    with torch.no_grad():
        result = program.resolve(str(node.target))(*values[:place], probe, *values[place + 1 :])
    if not isinstance(result, torch.Tensor) or result.shape != probe.shape:
        return False
    levels = torch.unique(result)
    return 1 < len(levels) <= 16 and torch.equal(levels, levels.round())
