"""Local graphs: a layer's synapse on the mean input of every bin, the first half of its backward step."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from functools import partial
from typing import Any

import torch
from torch import Tensor, nn

from tracecompile.layers import Layer


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
        self.parameters: dict[Tensor, Tensor] = {p: p.detach().requires_grad_() for p in _parameters(local)}
        self.statics = {name: statics[name] for name in layer.synapse_statics}
        with torch.enable_grad():
            for given, statistics in zip(means, norms, strict=True):
                leaves = {
                    name: value.detach().requires_grad_(name in wanted and value.is_floating_point())
                    for name, value in given.items()
                }
                self.leaves.append(leaves)
                given_all = (*leaves.values(), *self.statics.values(), *statistics)
                self.currents.append(_called(local, self.parameters, given_all))

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


def _parameters(module: nn.Module) -> list[nn.Parameter]:
    return [value for value in module.parameters() if value.requires_grad]


def _called(graph: nn.Module, stand_ins: Mapping[Tensor, Tensor], given: tuple[Any, ...]) -> Any:
    """Calls a graph with other tensors in the places of parameters.

    The modules that it calls are the user's, and stay as they are: others may look at them meanwhile.
    """
    forward, twin = vars(graph).get("forward"), _twin(graph, stand_ins, {})
    if isinstance(forward, partial):  # as printed, of the whole model
        return forward.func(twin, *given)
    return type(graph).forward(twin, *given) if forward is None else forward(*given)


def _twin(module: Any, stand_ins: Mapping[Tensor, Tensor], known: dict[int, Any]) -> Any:
    """Returns a module like another, down to its parts, with stand-ins for parameters."""
    if module is None or id(module) in known:
        return known.get(id(module))
    made = known[id(module)] = object.__new__(type(module))
    vars(made).update(vars(module))
    tensors = {
        name: value if value is None else stand_ins.get(value, value) for name, value in module._parameters.items()
    }
    parts = {name: _twin(part, stand_ins, known) for name, part in module._modules.items()}
    vars(made).update(_parameters=tensors, _modules=parts)
    return made
