"""The backward pass: layers from the last to the first, bins from the last to the first."""

from __future__ import annotations

from collections.abc import Mapping, Sequence

import torch
from torch import Tensor

from tracecompile.layers import Layer, Source
from tracecompile.program import StepProgram
from tracecompile.rules import Response
from tracecompile.rules.measured.horizon import Horizon, Profile
from tracecompile.rules.measured.lines import SCALED
from tracecompile.rules.measured.responses import Responses
from tracecompile.rules.measured.tangents import Tangents
from tracecompile.runtime.backward.all_bins import JointGraph
from tracecompile.runtime.backward.local import LocalGraph
from tracecompile.runtime.backward.neumann import Neumann, Settling
from tracecompile.runtime.backward.scaled import scale_gradients

Handed = list[tuple[str, int, Tensor]]
"""Learning signals that a bin hands upstream: (maker of the value, delay, signal)."""


class Solver:
    """Learning signals of every layer of a program, from those on the values that the user read.

    Attributes:
        signals: Learning signals by the node that made a value, one per bin.
        timed: By layer, signals on the variables of its core, (slots, *shape), that single steps have given.
        weights: Gradients of the parameters of synapses.
        statics: Learning signals of static values.
        initial: Learning signals of initial states, by placeholder.
        settling: How far the recurrent blocks have settled.
    """

    def __init__(
        self,
        program: StepProgram,
        overlap: Mapping[int, list[list[float]]],
        bins: int,
        responses: Mapping[str, Response],
        graphs: Mapping[str, LocalGraph | JointGraph],
        recorded: Mapping[str, Responses],
    ) -> None:
        """Prepares an empty solve.

        Args:
            program: What was run.
            overlap: For every delay that occurs, the share of each bin's delayed steps made in each bin.
            bins: K.
            responses: By layer name.
            graphs: By layer name.
            recorded: What was measured, by layer name.
        """
        self.recorded = recorded
        self.program, self.overlap, self.bins = program, overlap, bins
        self.responses, self.graphs = responses, graphs
        self.signals: dict[str, list[Tensor | None]] = {}
        self.timed: dict[str, dict[str, Tensor]] = {}
        self.weights: dict[Tensor, Tensor] = {}
        self.statics: dict[str, Tensor] = {}
        self.initial: dict[str, Tensor] = {}
        self.settling = Settling()
        self.horizon: Horizon | None = None
        """Set where there are fewer bins than steps, whose responses need the finite-horizon factor."""

    def add(self, origin: str, delay: int, index: int, signal: Tensor, *, own: bool = True) -> None:
        """Adds a learning signal on the values read in bin ``index`` to the bins in which they were made.

        Args:
            origin: Maker of the values.
            delay: Steps between making and reading.
            index: The bin.
            signal: dL/d(mean value read in the bin).
            own: False to leave out what was made in the same bin.
        """
        rows = self.signals.setdefault(origin, [None] * self.bins)
        shares = enumerate(self.overlap[delay][index]) if delay else [(index, 1.0)]
        for made, share in shares:
            if share and (own or made != index):
                rows[made] = _plus(rows[made], signal * share if share != 1.0 else signal)

    def add_timed(self, layer: Layer, variable: str, first: int, signal: Tensor) -> None:
        """Adds a signal, (slots, *shape), on the slots of a variable of a core from ``first`` on."""
        of_layer = self.timed.setdefault(layer.name, {})
        if variable not in of_layer:
            slots = self.bins if self.tangents(layer).is_binned(variable) else 1
            of_layer[variable] = signal.new_zeros((slots, *signal.shape[1:]))
        of_layer[variable][first : first + signal.shape[0]].add_(signal)

    def add_weights(self, weights: Mapping[Tensor, Tensor], statics: Mapping[str, Tensor]) -> None:
        """Adds gradients of the parameters of a synapse, and signals on its static values."""
        for parameter, gradient in weights.items():
            self.weights[parameter] = _plus(self.weights.get(parameter), gradient)
        for name, gradient in statics.items():
            self.statics[name] = _joined(self.statics.get(name), gradient)

    def tangents(self, layer: Layer) -> Tangents:
        """Returns the tangents of a layer with a measured response."""
        recorded = self.recorded[layer.name]
        return recorded.tangents

    def run(self) -> None:
        """Goes through the blocks from the last to the first."""
        for block in reversed(self.program.blocks):
            layers = [self.program.layers[index] for index in block.layers]
            if block.recurrent:
                self._recurrent(layers)
            else:
                self._feed_forward(layers[0])

    def _feed_forward(self, layer: Layer) -> None:
        if layer.name not in self.timed and not any(name in self.signals for name in layer.outputs):
            return
        time = self.horizon
        profile = None if time is None else time.answer(layer, self.responses[layer.name], list(self.signals))
        pulled = [self._currents(layer, index) for index in range(self.bins)]
        self._hand_on(layer, layer.sources, pulled, profile)
        self._finish(layer, pulled)

    def _hand_on(
        self,
        layer: Layer,
        sources: Sequence[Source],
        pulled: Sequence[Mapping[str, Tensor]],
        profile: Profile | None,
    ) -> None:
        """Hands on what reaches some sources of a layer, from all bins, with its profile in time."""
        upstream = self.graphs[layer.name].upstream_of_all(pulled, {source.value for source in sources})
        for index, found in enumerate(upstream):
            for source in sources:
                if source.value not in found:
                    continue
                self.add(source.origin, source.delay, index, found[source.value])
                if self.horizon is not None and profile is not None:
                    self.horizon.note(source.origin, found[source.value], profile, index)

    def _recurrent(self, layers: list[Layer]) -> None:
        """Solves a block bin by bin from the last to the first."""
        inside = {output for layer in layers for output in layer.outputs}
        name = "+".join(layer.name for layer in layers)
        pulled: dict[str, list[Mapping[str, Tensor]]] = {layer.name: [{}] * self.bins for layer in layers}
        for index in reversed(range(self.bins)):
            solve = Neumann()
            sweep = _Sweep(self, layers, inside, index)
            solve.run(sweep)
            self.settling.note(name, solve)
            for layer in layers:
                pulled[layer.name][index] = sweep.pulled[layer.name]
            for origin, delay, signal in sweep.earlier:
                self.add(origin, delay, index, signal, own=False)
        # How a signal spreads in time through recurrence is not known: taken as constant.
        profile = None if self.horizon is None else self.horizon.constant()
        for layer in reversed(layers):
            others = [source for source in layer.sources if source.origin not in inside]
            self._hand_on(layer, others, pulled[layer.name], profile)
        for layer in layers:
            self._finish(layer, pulled[layer.name])

    def _currents(self, layer: Layer, index: int, *, but_own: bool = False) -> dict[str, Tensor]:
        """Returns the learning signals on a layer's currents in one bin, if asked without those of its own outputs."""
        signals = {name: self.signals[name] for name in layer.outputs if name in self.signals}
        if but_own:
            signals = {name: [*rows[:index], None, *rows[index + 1 :]] for name, rows in signals.items()}
        timed = self.timed.get(layer.name, {})
        found = self.responses[layer.name].on_currents(layer, signals, index) if signals else {}
        for current in layer.currents:
            if current in timed:
                found[current] = _plus(found.get(current), timed[current][index])
        return found

    def _handed(self, layer: Layer, index: int, signals: Mapping[str, Tensor], sources: Sequence[Source]) -> Handed:
        """Returns what a layer hands on in one bin to some of its sources."""
        if not signals or not sources:
            return []
        upstream = self.graphs[layer.name].upstream(index, signals, {source.value for source in sources})
        return [(s.origin, s.delay, upstream[s.value]) for s in sources if s.value in upstream]

    def _finish(self, layer: Layer, pulled: Sequence[Mapping[str, Tensor]]) -> None:
        """Takes the gradients of a layer whose learning signals are settled."""
        signals = {name: self.signals[name] for name in layer.outputs if name in self.signals}
        self.add_weights(*self.graphs[layer.name].weight_gradients(pulled))
        of_core = self.responses[layer.name].parameter_signals(layer, signals) if signals else {}
        timed = self.timed.get(layer.name, {})
        if layer.scales and self.horizon is not None:
            self.add_weights(*scale_gradients(layer, self.graphs[layer.name], of_core, timed))
        for name, signal in timed.items():
            if name not in layer.currents:
                of_core[name] = _plus(of_core.get(name), signal[0])
        for name, gradient in of_core.items():
            if name.startswith(SCALED):
                continue
            if name.startswith("init:"):
                self.initial[name.removeprefix("init:")] = gradient
            else:
                self.statics[name] = _joined(self.statics.get(name), gradient)


class _Sweep:
    """One pass through a recurrent block in one bin, from its last layer to its first."""

    def __init__(self, solver: Solver, layers: list[Layer], inside: set[str], index: int) -> None:
        self.solver, self.layers, self.inside, self.index = solver, layers, inside, index
        self.pulled: dict[str, dict[str, Tensor]] = {}
        self.earlier: Handed = []
        self.base = {name: solver.signals[name][index] if name in solver.signals else None for name in inside}
        self.later = {layer.name: solver._currents(layer, index, but_own=True) for layer in layers}
        """What other bins make of the signals on the currents: the same in every pass."""

    def __call__(self, fed: Mapping[str, Tensor]) -> dict[str, Tensor]:
        """Returns what the bin's own delayed values feed back."""
        rows = self.solver.signals
        for name in self.inside:
            signal = self.base[name]
            now = _plus(signal, fed[name]) if name in fed else signal
            if now is not None or name in rows:
                rows.setdefault(name, [None] * self.solver.bins)[self.index] = now
        self.earlier = []
        fed_back: dict[str, Tensor] = {}
        for layer in reversed(self.layers):
            self.pulled[layer.name] = self._currents(layer)
            own = [source for source in layer.sources if source.origin in self.inside]
            for origin, delay, signal in self.solver._handed(layer, self.index, self.pulled[layer.name], own):
                if delay == 0:
                    self.solver.add(origin, 0, self.index, signal)
                    continue
                self.earlier.append((origin, delay, signal))
                share = self.solver.overlap[delay][self.index][self.index]
                if share:
                    fed_back[origin] = _plus(fed_back.get(origin), signal * share)
        return fed_back

    def _currents(self, layer: Layer) -> dict[str, Tensor]:
        """Returns the learning signals on a layer's currents as they are in this pass."""
        rows, bins = self.solver.signals, self.solver.bins
        before, after = [None] * self.index, [None] * (bins - 1 - self.index)
        own = {name: [*before, rows[name][self.index], *after] for name in layer.outputs if name in rows}
        found = dict(self.later[layer.name])
        for current, signal in (
            self.solver.responses[layer.name].on_currents(layer, own, self.index) if own else {}
        ).items():
            found[current] = _plus(found.get(current), signal)
        return found


def _plus(left: Tensor | None, right: Tensor) -> Tensor:
    return right if left is None else left + right


def _joined(left: Tensor | None, right: Tensor) -> Tensor:
    """Adds signals on a static value: a core gives them per sample, a synapse in the shape of the value."""
    if left is None or left.shape == right.shape:
        return _plus(left, right)
    shape = min(left.shape, right.shape, key=torch.Size.numel)
    return left.sum_to_size(shape) + right.sum_to_size(shape)
