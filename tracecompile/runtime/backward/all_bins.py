"""Local graphs of all bins at once: the means of the bins side by side in the batch, as the steps of a chunk are."""

from __future__ import annotations

from collections.abc import Collection, Mapping, Sequence
from functools import cached_property

import torch
from torch import Tensor

from tracecompile.analysis.folding import fold_applies, folded, repeated, unfolded
from tracecompile.layers import Fold, Layer
from tracecompile.program import StepProgram
from tracecompile.runtime.backward.local import Learned, LocalGraph, Point, fitted, graph_leaf
from tracecompile.runtime.twins import on_twins


def local_graph(
    program: StepProgram,
    layer: Layer,
    bins: Sequence[Sequence[Point]],
    statics: Mapping[str, Tensor],
    wanted: set[str],
    *,
    solved: bool,
) -> LocalGraph | JointGraph:
    """Returns the local graph of a layer: of all bins at once where each row goes by itself, else bin by bin.

    Args:
        program: Owner of the modules that it calls.
        layer, bins, statics, wanted: See ``LocalGraph``.
        solved: Whether single bins will be pulled through it, as for a recurrent block.
    """
    if layer.fold is not None and len(bins) > 1 and (layer.linear or not solved):
        means = {
            name: [points[0].sources[name] for points in bins] for name in (source.value for source in layer.sources)
        }
        if all(len({value.shape for value in values}) == 1 for values in means.values()):
            sources = {name: torch.stack(values) for name, values in means.items()}
            if fold_applies(layer.fold, program, sources):
                return JointGraph(layer, layer.fold, sources, statics, wanted)
    return LocalGraph(layer, bins, statics, wanted)


class JointGraph(Learned):
    """A layer's synapse at the mean inputs of all bins, with a graph; takes and gives what a ``LocalGraph`` does."""

    def __init__(
        self, layer: Layer, fold: Fold, sources: Mapping[str, Tensor], statics: Mapping[str, Tensor], wanted: set[str]
    ) -> None:
        """Evaluates the synapse.

        Args:
            layer: The layer.
            fold: How its synapse is computed for many bins.
            sources: Mean inputs, (bins, rows, ...) each.
            statics: Static values.
            wanted: Sources whose learning signal someone upstream needs.
        """
        super().__init__(layer, statics)
        assert layer.local is not None
        self.bins = next(iter(sources.values())).shape[0]
        rows = next(iter(sources.values())).shape[1]
        self._first = Point({name: value[0] for name, value in sources.items()}, [])
        self._wanted, self._all_statics = wanted, statics
        self._leaves = {name: graph_leaf(folded(value), name in wanted) for name, value in sources.items()}
        with torch.enable_grad():
            given = dict(self.statics)
            given.update((name, repeated(given[name], rows, self.bins)) for name in fold.per_sample)
            found = on_twins(layer.local, self.parameters)(*self._leaves.values(), *given.values())
            self._currents = [unfolded(value, self.bins) for value in found]

    @cached_property
    def currents(self) -> list[tuple[Tensor, ...]]:
        """By bin, the mean of what it gives."""
        return list(zip(*(value.detach().unbind() for value in self._currents), strict=True))

    @cached_property
    def _of_one(self) -> LocalGraph:
        """The graph of one bin, whose derivative by the sources is that of all of them."""
        assert self.layer.linear
        return LocalGraph(self.layer, [[self._first]], self._all_statics, self._wanted)

    def upstream(self, index: int, signals: Mapping[str, Tensor], of: Collection[str]) -> dict[str, Tensor]:
        """See LocalGraph."""
        return self._of_one.upstream(0, signals, of)

    def upstream_of_all(
        self, signals: Sequence[Mapping[str, Tensor]], of: Collection[str]
    ) -> list[Mapping[str, Tensor]]:
        """See LocalGraph."""
        leaves = {name: leaf for name, leaf in self._leaves.items() if name in of and leaf.requires_grad}
        acting = {name for name in self.layer.currents if not self.layer.read_by[name].isdisjoint(leaves)}
        pulled = self._pull(signals, acting, list(leaves.values()))
        rows = {
            name: unfolded(value, self.bins).unbind()
            for name, value in zip(leaves, pulled, strict=True)
            if value is not None
        }
        return [
            {name: values[index] for name, values in rows.items()} if given else {}
            for index, given in enumerate(signals)
        ]

    def _pull_all(self, signals: Sequence[Mapping[str, Tensor]], inputs: list[Tensor]) -> list[Tensor | None]:
        return self._pull(signals, self.layer.currents, inputs)

    def _pull(
        self, signals: Sequence[Mapping[str, Tensor]], acting: Collection[str], inputs: list[Tensor]
    ) -> list[Tensor | None]:
        """Pulls the signals of all bins on some currents to tensors of the graph."""
        outputs: list[Tensor] = []
        pulls: list[Tensor] = []
        for name, current in zip(self.layer.currents, self._currents, strict=True):
            if name in acting and current.requires_grad and any(name in given for given in signals):
                none = torch.zeros_like(current[0])
                rows = [fitted(given[name], none) if name in given else none for given in signals]
                outputs.append(current)
                pulls.append(torch.stack(rows))
        if not outputs or not inputs:
            return [None] * len(inputs)
        return list(torch.autograd.grad(outputs, inputs, pulls, retain_graph=True, allow_unused=True))
