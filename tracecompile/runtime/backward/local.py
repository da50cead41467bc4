"""Local graphs: a layer's synapse at the mean input of every bin, or at steps of it; half of its backward step."""

from __future__ import annotations

from abc import ABC, abstractmethod
from collections.abc import Collection, Mapping, Sequence
from dataclasses import dataclass

import torch
from torch import Tensor

from tracecompile.layers import Layer
from tracecompile.runtime.twins import on_twins


@dataclass(frozen=True)
class Point:
    """Where a local graph is evaluated.

    Attributes:
        sources: By source value.
        norms: Recorded statistics of its normalisations.
    """

    sources: Mapping[str, Tensor]
    norms: Sequence[Tensor]


class Learned(ABC):
    """What a layer's synapse learns in one backward pass.

    Attributes:
        layer: The layer.
        parameters: What stands for each Parameter, on which a hook must see its whole gradient once, not parts of it.
        statics: Static values that the synapse takes.
    """

    def __init__(self, layer: Layer, statics: Mapping[str, Tensor]) -> None:
        """Makes the stand-ins."""
        assert layer.local is not None
        self.layer = layer
        learned = (parameter for parameter in layer.local.parameters() if parameter.requires_grad)
        self.parameters: dict[Tensor, Tensor] = {p: p.detach().requires_grad_() for p in learned}
        self.statics = {name: statics[name] for name in layer.synapse_statics}

    def weight_gradients(
        self, signals: Sequence[Mapping[str, Tensor]]
    ) -> tuple[dict[Tensor, Tensor], dict[str, Tensor]]:
        """Returns the gradients of the synapse's parameters and the learning signals of its static values."""
        statics = {
            name: value for name, value in self.statics.items() if isinstance(value, Tensor) and value.requires_grad
        }
        found = self._pull_all(signals, [*self.parameters.values(), *statics.values()])
        split = len(self.parameters)
        weights = {p: g for p, g in zip(self.parameters, found[:split], strict=True) if g is not None}
        return weights, {name: g for name, g in zip(statics, found[split:], strict=True) if g is not None}

    @abstractmethod
    def _pull_all(self, signals: Sequence[Mapping[str, Tensor]], inputs: list[Tensor]) -> list[Tensor | None]:
        """Pulls the signals of all bins on the currents to tensors of the graph."""


class LocalGraph(Learned):
    """A layer's synapse, evaluated for every bin, with a graph: at the mean input, or at some steps as they were.

    Attributes:
        currents: By bin, the mean of what it gives.
    """

    def __init__(
        self, layer: Layer, bins: Sequence[Sequence[Point]], statics: Mapping[str, Tensor], wanted: set[str]
    ) -> None:
        """Evaluates the synapse.

        Args:
            layer: The layer.
            bins: Of each bin, where.
            statics: Static values.
            wanted: Sources whose learning signal someone upstream needs.
        """
        super().__init__(layer, statics)
        self.leaves: list[list[dict[str, Tensor]]] = []
        self.currents: list[tuple[Tensor, ...]] = []
        assert layer.local is not None
        called = on_twins(layer.local, self.parameters)
        with torch.enable_grad():
            for points in bins:
                given = [_leaves(point, wanted) for point in points]
                found = [
                    called(*leaves.values(), *self.statics.values(), *point.norms)
                    for leaves, point in zip(given, points, strict=True)
                ]
                self.leaves.append(given)
                self.currents.append(tuple(map(_mean, zip(*found, strict=True))))

    def upstream_of_all(
        self, signals: Sequence[Mapping[str, Tensor]], of: Collection[str]
    ) -> list[Mapping[str, Tensor]]:
        """Returns what ``upstream`` does, for every bin."""
        return [self.upstream(index, given, of) if given else {} for index, given in enumerate(signals)]

    def upstream(self, index: int, signals: Mapping[str, Tensor], of: Collection[str]) -> dict[str, Tensor]:
        """Returns the learning signal on the mean of some sources of one bin, those that want one; keeps the graph."""
        given = self.leaves[index]
        named = [(n, leaf) for leaves in given for n, leaf in leaves.items() if n in of and leaf.requires_grad]
        names = {name for name, _ in named}
        # The other currents would be looked at in vain, which takes longer than the product does.
        acting = {c: signal for c, signal in signals.items() if not names.isdisjoint(self.layer.read_by[c])}
        found: dict[str, Tensor] = {}
        for (name, _), signal in zip(named, self._pull([index], [acting], [leaf for _, leaf in named]), strict=True):
            if signal is not None:
                found[name] = found[name] + signal if name in found else signal
        return found

    def _pull_all(self, signals: Sequence[Mapping[str, Tensor]], inputs: list[Tensor]) -> list[Tensor | None]:
        return self._pull(range(len(signals)), signals, inputs)

    def _pull(
        self, bins: Sequence[int], signals: Sequence[Mapping[str, Tensor]], inputs: list[Tensor]
    ) -> list[Tensor | None]:
        outputs: list[Tensor] = []
        pulls: list[Tensor] = []
        for index, given in zip(bins, signals, strict=True):
            for name, current in zip(self.layer.currents, self.currents[index], strict=True):
                if name in given and current.requires_grad:
                    outputs.append(current)
                    pulls.append(fitted(given[name], current))
        if not outputs or not inputs:
            return [None] * len(inputs)
        return list(torch.autograd.grad(outputs, inputs, pulls, retain_graph=True, allow_unused=True))


def _leaves(point: Point, wanted: set[str]) -> dict[str, Tensor]:
    return {name: graph_leaf(value, name in wanted) for name, value in point.sources.items()}


def graph_leaf(value: Tensor, wanted: bool) -> Tensor:
    """Returns a source as a leaf of a local graph, which has a gradient if that is wanted."""
    return value.detach().requires_grad_(wanted and value.is_floating_point())


def _mean(values: Sequence[Tensor]) -> Tensor:
    """Returns the mean; of what is true or false, the share of the steps at which it is true."""
    if len(values) == 1:
        return values[0]
    together = torch.stack(tuple(values))
    return (together if together.is_floating_point() else together.float()).mean(0)


def fitted(signal: Tensor, current: Tensor) -> Tensor:
    """Returns a learning signal in the shape of a current: summed where one current serves several neurons."""
    if signal.ndim > current.ndim or signal.numel() > current.numel():
        signal = signal.sum_to_size(current.shape)
    return signal.to(current.dtype).expand_as(current)
