"""What a mean forgets of the gradients of scales: the product of a signal and a current within a bin."""

from __future__ import annotations

from collections.abc import Mapping

import torch
from torch import Tensor

from tracecompile.layers import Layer, Scale
from tracecompile.rules.measured.lines import SCALED
from tracecompile.runtime.backward.all_bins import JointGraph
from tracecompile.runtime.backward.local import LocalGraph


def scale_gradients(
    layer: Layer, graph: LocalGraph | JointGraph, found: Mapping[str, Tensor], timed: Mapping[str, Tensor]
) -> tuple[dict[Tensor, Tensor], dict[str, Tensor]]:
    """Returns what is to be added to the gradients of the scales of a layer: of parameters, and of static values.

    With q the signal on a current I = p u + r, the gradient of p is sum q u. The local graph has the products of the
    means. The rest is that of q I, divided by p. A scale near zero, which says nothing of u, keeps those of the means.

    Args:
        layer: The layer.
        graph: Its synapse on means.
        found: What the local graph lacks of the sum of q I, per neuron, by the name of the gain of the current.
        timed: Signals that single steps have given: on a gain, (1, *shape), and on its current, by bin.
    """
    weights: dict[Tensor, Tensor] = {}
    statics: dict[str, Tensor] = {}
    for scale in layer.scales:
        name = f"{SCALED}{scale.current}"
        parts = [part for part in (found.get(name), _of_steps(layer, graph, scale.current, timed)) if part is not None]
        value = _value(layer, scale, graph)
        if not parts or value is None:
            continue
        lacking = sum(parts[1:], parts[0])
        added = _by_scale(lacking, scale, graph.currents[0][layer.currents.index(scale.current)], value)
        if scale.static:
            statics[scale.static] = statics[scale.static] + added if scale.static in statics else added
        else:
            weights[value] = weights[value] + added if value in weights else added
    return weights, statics


def _value(layer: Layer, scale: Scale, graph: LocalGraph | JointGraph) -> Tensor | None:
    """Returns a scale, None where its gradient is not wanted."""
    if scale.static:
        value = graph.statics[scale.static]
        return value if value.requires_grad else None
    weight = layer.synapse.get_parameter(f"{scale.module}.weight")
    return weight if weight in graph.parameters else None


def _of_steps(layer: Layer, graph: LocalGraph | JointGraph, current: str, timed: Mapping[str, Tensor]) -> Tensor | None:
    """Returns what is lacking of the signals of single steps."""
    if f"{SCALED}{current}" not in timed:
        return None
    place, total = layer.currents.index(current), timed[f"{SCALED}{current}"][0]
    for signal, currents in zip(timed.get(current, ()), graph.currents, strict=False):
        total = total - signal * currents[place].detach()
    return total


def _by_scale(lacking: Tensor, scale: Scale, current: Tensor, value: Tensor) -> Tensor:
    """Sums what is lacking over the neurons that share a scale, and divides it by that."""
    if lacking.numel() > current.numel():
        lacking = lacking.sum_to_size(current.shape)
    shape = [1, -1, *([1] * (current.ndim - 2))] if scale.channels else list(value.shape)
    divisor = value.detach().reshape(shape)
    summed = lacking.sum_to_size(divisor.shape)
    small = divisor.abs() <= torch.finfo(divisor.dtype).eps ** 0.5
    found = torch.where(small, torch.zeros_like(summed), summed / torch.where(small, 1.0, divisor))
    return (-found if scale.divides else found).reshape(value.shape).to(value.dtype)
