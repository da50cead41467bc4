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

from tracecompile.analysis.linearity import is_norm

if TYPE_CHECKING:
    from tracecompile.program import StepProgram


def batch_statistics(value: Tensor) -> tuple[Tensor, Tensor]:
    """Returns the mean and the biased variance of each channel (axis 1) over all other axes."""
    axes = [axis for axis in range(value.ndim) if axis != 1]
    variance, mean = torch.var_mean(value, axes, unbiased=False)
    return mean, variance


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
        own_mean, own_variance = batch_statistics(value)
        mean = mean.to(value.dtype) + (own_mean - own_mean.detach())
        variance = variance.to(value.dtype) + (own_variance - own_variance.detach())
        shape = [1, -1, *([1] * (value.ndim - 2))]
        normalised = (value - mean.reshape(shape)) / (variance.reshape(shape) + norm.eps).sqrt()
        if not norm.affine:
            return normalised
        return normalised * norm.weight.reshape(shape) + norm.bias.reshape(shape)


def with_recorded_norms(program: StepProgram, synapse: fx.GraphModule) -> tuple[fx.GraphModule, tuple[str, ...]]:
    """Rewrites a synapse for the local graph.

    Returns:
        (*sources, *statics, *mean and variance per normalisation) -> currents, and the nodes of the normalisations.
    """
    norms = [node for node in synapse.graph.nodes if is_norm(program, node)]
    if not norms:
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
            target = f"recorded_{node.name}"
            owned[target] = RecordedNorm(program.resolve(str(node.target)))
            values[node] = graph.call_module(target, (values[node.all_input_nodes[0]], *given[node]))
        elif node.op != "placeholder":
            values[node] = graph.node_copy(node, values.__getitem__)
            if node.op == "call_module":
                owned[str(node.target)] = program.resolve(str(node.target))
    return fx.GraphModule(owned, graph, "Local"), tuple(node.name for node in norms)
