"""Local graphs: a layer's synapse on the mean input of every bin, the first half of its backward step."""

from __future__ import annotations

from collections.abc import Mapping, Sequence

import torch
from torch import Tensor

from tracecompile.layers import Layer
from tracecompile.runtime.twins import on_twins


class LocalGraph:
    """A layer's synapse, evaluated on the mean input of every bin, with a graph."""

    def __init__(
        self,
        layer: Layer,
        means: list[dict[str, Tensor]],
        norms: list[list[Tensor]],
        statics: Mapping[str, Tensor],
        wanted: set[str],
    ) -> None:
        """Evaluates the synapse.

        Args:
            layer: The layer.
            means: Mean input by source value, per bin.
            norms: Recorded statistics of its normalisations, per bin.
            statics: Static values.
            wanted: Sources whose learning signal someone upstream needs.
        """
        local = layer.local
        assert local is not None
        self.layer = layer
        self.leaves: list[dict[str, Tensor]] = []
        self.currents: list[tuple[Tensor, ...]] = []
        # Stand-ins, because a hook on a parameter must see its whole gradient once, not the parts of it.
        learned = (parameter for parameter in local.parameters() if parameter.requires_grad)
        self.parameters: dict[Tensor, Tensor] = {p: p.detach().requires_grad_() for p in learned}
        called = on_twins(local, self.parameters)
        self.statics = {name: statics[name] for name in layer.synapse_statics}
        with torch.enable_grad():
            for given, statistics in zip(means, norms, strict=True):
                leaves = {
                    name: value.detach().requires_grad_(name in wanted and value.is_floating_point())
                    for name, value in given.items()
                }
                self.leaves.append(leaves)
                self.currents.append(called(*leaves.values(), *self.statics.values(), *statistics))

    def upstream(self, index: int, signals: Mapping[str, Tensor]) -> dict[str, Tensor]:
        """Returns the learning signal on the sources of one bin; keeps the graph."""
        leaves = {name: leaf for name, leaf in self.leaves[index].items() if leaf.requires_grad}
        found = self._pull([index], [signals], list(leaves.values()))
        return {name: signal for name, signal in zip(leaves, found, strict=True) if signal is not None}

    def weight_gradients(
        self, signals: Sequence[Mapping[str, Tensor]]
    ) -> tuple[dict[Tensor, Tensor], dict[str, Tensor]]:
        """Returns the gradients of the synapse's parameters and the learning signals of its static values."""
        statics = {
            name: value for name, value in self.statics.items() if isinstance(value, Tensor) and value.requires_grad
        }
        found = self._pull(range(len(signals)), signals, [*self.parameters.values(), *statics.values()])
        split = len(self.parameters)
        weights = {p: g for p, g in zip(self.parameters, found[:split], strict=True) if g is not None}
        return weights, {name: g for name, g in zip(statics, found[split:], strict=True) if g is not None}

    def _pull(
        self, bins: Sequence[int], signals: Sequence[Mapping[str, Tensor]], inputs: list[Tensor]
    ) -> list[Tensor | None]:
        outputs: list[Tensor] = []
        pulls: list[Tensor] = []
        for index, given in zip(bins, signals, strict=True):
            for name, current in zip(self.layer.currents, self.currents[index], strict=True):
                if name in given and current.requires_grad:
                    outputs.append(current)
                    pulls.append(_fitted(given[name], current))
        if not outputs or not inputs:
            return [None] * len(inputs)
        return list(torch.autograd.grad(outputs, inputs, pulls, retain_graph=True, allow_unused=True))


def _fitted(signal: Tensor, current: Tensor) -> Tensor:
    """Returns a learning signal in the shape of a current: summed where one current serves several neurons."""
    if signal.ndim > current.ndim or signal.numel() > current.numel():
        signal = signal.sum_to_size(current.shape)
    return signal.to(current.dtype).expand_as(current)
