"""Batch normalisation in a local graph.

In training the statistics are those of each time step's spikes, not those of their mean over time: their values are
recorded (the mean over the steps of the batch means and of the batch variances), their gradients are taken from the
mean input.
"""

from __future__ import annotations

from typing import TYPE_CHECKING

import torch
from torch import Tensor, fx, nn
from torch.nn import functional as F

from tracecompile.analysis.norms import batch_norm_arguments, is_norm, norm_arguments
from tracecompile.operations import Fact, has
from tracecompile.rules.accumulation import accumulator_dtype

if TYPE_CHECKING:
    from tracecompile.program import StepProgram


def batch_statistics(value: Tensor) -> tuple[Tensor, Tensor]:
    """Returns the mean and the biased variance of each channel (axis 1) over all other axes."""
    return mean_and_variance(value, tuple(axis for axis in range(value.ndim) if axis != 1))


def mean_and_variance(value: Tensor, axes: tuple[int, ...]) -> tuple[Tensor, Tensor]:
    """Returns the mean and the biased variance over some axes.

    In two passes over the values: torch.var_mean, which makes one, takes ten times longer on the CPU.
    """
    precise = value.to(accumulator_dtype(value.dtype))
    mean = _mean(precise, axes)
    centered = precise - mean
    squares = centered.square() if centered.requires_grad else centered.square_()
    return mean.squeeze(axes).to(value.dtype), _mean(squares, axes).squeeze(axes).to(value.dtype)


def _mean(value: Tensor, axes: tuple[int, ...]) -> Tensor:
    """Returns the mean over some axes, which stay: first over the last ones, which lie side by side in memory."""
    first = max((axis for axis in range(value.ndim) if axis not in axes), default=-1) + 1
    for part in (tuple(range(first, value.ndim)), tuple(axis for axis in axes if axis < first)):
        value = value.mean(part, keepdim=True) if part else value
    return value


def recorded_batch_norm(
    value: Tensor, mean: Tensor, variance: Tensor, weight: Tensor | None, bias: Tensor | None, eps: float
) -> Tensor:
    """Normalises the mean input with recorded statistics, whose gradients are those of the mean input's own.

    Args:
        value: Mean over time of the normalisation's input, (B, C, ...).
        mean: Recorded mean of the batch means, (C,).
        variance: Recorded mean of the batch variances, (C,).
        weight, bias, eps: As in ``functional.batch_norm``.
    """
    # In one pass, as a norm itself computes them: what is rounded in the gradient of a bias before it, which is nothing
    # else, is then the same as in the model's.
    axes = [axis for axis in range(value.ndim) if axis != 1]
    own_variance, own_mean = torch.var_mean(value, axes, unbiased=False)
    mean = mean.to(value.dtype) + (own_mean - own_mean.detach())
    variance = variance.to(value.dtype) + (own_variance - own_variance.detach())
    shape = [1, -1, *([1] * (value.ndim - 2))]
    normalised = (value - mean.reshape(shape)) / (variance.reshape(shape) + eps).sqrt()
    if weight is not None:
        normalised = normalised * weight.reshape(shape)
    return normalised if bias is None else normalised + bias.reshape(shape)


class RecordedNorm(nn.Module):
    """A batch normalisation with recorded statistics; leaves the running ones of the module alone."""

    def __init__(self, module: nn.Module) -> None:
        super().__init__()
        self.module = module

    def forward(self, value: Tensor, mean: Tensor, variance: Tensor) -> Tensor:
        """Normalises the mean input.

        Args:
            value: Mean over time of the normalisation's input, (B, C, ...).
            mean: Recorded mean of the batch means, (C,).
            variance: Recorded mean of the batch variances, (C,).
        """
        norm = self.module
        assert isinstance(norm, nn.modules.batchnorm._BatchNorm)
        if not norm.training and norm.running_mean is not None:
            return F.batch_norm(
                value, norm.running_mean, norm.running_var, norm.weight, norm.bias, False, 0.0, norm.eps
            )
        return recorded_batch_norm(value, mean, variance, norm.weight, norm.bias, norm.eps)


class StillNorm(nn.Module):
    """A normalisation of every sample by itself, which leaves the running statistics of the module alone."""

    def __init__(self, module: nn.Module) -> None:
        super().__init__()
        self.module = module

    def forward(self, value: Tensor) -> Tensor:
        """Normalises the mean input."""
        norm = self.module
        assert isinstance(norm, nn.modules.instancenorm._InstanceNorm)
        if not norm.training:
            result: Tensor = norm(value)
            return result
        return F.instance_norm(value, None, None, norm.weight, norm.bias, True, 0.0, norm.eps)


def with_recorded_norms(program: StepProgram, synapse: fx.GraphModule) -> tuple[fx.GraphModule, tuple[str, ...]]:
    """Rewrites a synapse for the local graph, which must not move running statistics.

    Returns:
        (*sources, *statics, *mean and variance per normalisation) -> currents, and the nodes of the normalisations.
    """
    norms = [node for node in synapse.graph.nodes if is_norm(program, node)]
    still = [node for node in synapse.graph.nodes if _moves_alone(program, node)]
    if not norms and not still:
        return synapse, ()
    graph, values = fx.Graph(), dict[fx.Node, fx.Node]()
    for node in synapse.graph.nodes:
        if node.op == "placeholder":
            values[node] = graph.placeholder(node.name)
    given = {
        node: (graph.placeholder(f"{node.name}_mean"), graph.placeholder(f"{node.name}_variance")) for node in norms
    }
    owned: dict[str, object] = {}
    for node in synapse.graph.nodes:
        if node in given:
            values[node] = _recorded(program, node, given[node], graph, values, owned)
        elif node in still:
            values[node] = _still(program, node, graph, values, owned)
        elif node.op != "placeholder":
            values[node] = graph.node_copy(node, values.__getitem__)
            if node.op == "call_module":
                owned[str(node.target)] = program.resolve(str(node.target))
    return fx.GraphModule(owned, graph, "Local"), tuple(node.name for node in norms)


def _recorded(
    program: StepProgram,
    node: fx.Node,
    statistics: tuple[fx.Node, fx.Node],
    graph: fx.Graph,
    values: dict[fx.Node, fx.Node],
    owned: dict[str, object],
) -> fx.Node:
    arguments = batch_norm_arguments(node)
    if arguments is None:
        target = f"recorded_{node.name}"
        owned[target] = RecordedNorm(program.resolve(str(node.target)))
        return graph.call_module(target, (values[node.all_input_nodes[0]], *statistics))
    value, *others = (
        values[argument] if isinstance(argument, fx.Node) else argument
        for argument in map(arguments.get, ("input", "weight", "bias", "eps"))
    )
    return graph.call_function(recorded_batch_norm, (value, *statistics, *others))


def _moves_alone(program: StepProgram, node: fx.Node) -> bool:
    if node.op == "call_module":
        module = program.resolve(str(node.target))
        return has(node, Fact.OWN_STATISTICS, module) and module.track_running_stats
    return has(node, Fact.OWN_STATISTICS)


def _still(
    program: StepProgram, node: fx.Node, graph: fx.Graph, values: dict[fx.Node, fx.Node], owned: dict[str, object]
) -> fx.Node:
    if node.op == "call_module":
        target = f"still_{node.name}"
        owned[target] = StillNorm(program.resolve(str(node.target)))
        return graph.call_module(target, (values[node.all_input_nodes[0]],))
    arguments = norm_arguments(node.target, node.args, dict(node.kwargs))
    assert arguments is not None
    still = arguments["training"]
    names = ("input", "running_mean", "running_var", "weight", "bias", "training", "momentum", "eps")
    found = [None if still and name.startswith("running") else arguments.get(name) for name in names]
    return graph.call_function(F.instance_norm, fx.map_arg(tuple(found), values.__getitem__))
