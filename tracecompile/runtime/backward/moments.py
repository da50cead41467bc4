"""Learning signals that fall on single steps: what happened in these very steps answers to them, not the mean of a bin.

A value that is read in one step answers to a current of an earlier bin with this step's tangent, not with the mean
response of its own bin. So a signal on one step is pulled through the step itself as far as it stays within the step:
through readouts, at the step's own input, to the currents of the first layers with a state. Their signals are then per
bin, exactly the sum over the steps of the bin, and from there on the bins take over.
"""

from __future__ import annotations

from collections.abc import Callable, Mapping

from torch import Tensor

from tracecompile.layers import Layer
from tracecompile.program import StepProgram
from tracecompile.rules.measured.adjoint import KnownCurrents
from tracecompile.rules.measured.lines import SCALED
from tracecompile.runtime.backward.local import LocalGraph, Point
from tracecompile.runtime.backward.signals import AtOnce
from tracecompile.runtime.backward.solve import Solver
from tracecompile.runtime.bins import Bins
from tracecompile.runtime.record import Moment, norm_pairs


class MomentPass:
    """Hands the signals of single steps to a solver, one step at a time, in any order."""

    def __init__(
        self,
        program: StepProgram,
        bins: Bins,
        solver: Solver,
        statics: Mapping[str, Tensor],
        wanted: set[str],
        as_read: Callable[[str, Tensor], Tensor],
    ) -> None:
        """Prepares the pass.

        Args:
            program: After all passes.
            bins: Of the sequence.
            solver: Takes what is found; run it afterwards.
            statics: Leaves of the static values.
            wanted: Makers of values whose learning signal someone needs.
            as_read: Maps the name and value of a source to what a local graph reads.
        """
        self.program, self.bins, self.solver = program, bins, solver
        self.statics, self.wanted, self.as_read = statics, wanted, as_read
        self.made = {output for layer in program.layers for output in layer.outputs}

    def take(self, moment: Moment, given: AtOnce, known: KnownCurrents | None = None) -> None:
        """Takes one step.

        Args:
            moment: The step.
            given: Signals on its values that the user read.
            known: Signals on the currents of layers for which they are known step by step; those on their outputs are
                among ``given`` nevertheless, for the parameters of their cores.
        """
        handed: AtOnce = {}
        for layer in reversed(self.program.layers):
            currents = known.at(layer, moment.step) if known is not None else {}
            direct = {name: given[name] for name in layer.outputs if name in given}
            passed = {name: handed[name] for name in layer.outputs if name in handed}
            if layer.core is None:
                found = [group[layer.outputs[0]] for group in (direct, passed) if group]
                currents = {layer.currents[0]: sum(found[1:], found[0])} if found else {}
            else:
                self._answer(layer, moment, direct, but=set(currents))
                self._answer(layer, moment, passed, but=set())
            if currents:
                self._pass_on(layer, moment, currents, handed)

    def _answer(self, layer: Layer, moment: Moment, signals: AtOnce, but: set[str]) -> None:
        """Pulls signals on the outputs of a core to its currents in each bin and to its parameters."""
        if not signals:
            return
        tangents = self.solver.tangents(layer)
        for (output, variable), change in moment.changes[layer.name].items():
            acting = [each for each in tangents.acting_as(variable) if each.removeprefix(SCALED) not in but]
            if output in signals and acting:
                first = moment.first[layer.name] if tangents.is_binned(variable) else 0
                answer = change * signals[output]
                for each in acting:
                    self.solver.add_timed(layer, each, first, answer)
        if self.solver.horizon is not None:
            for output, signal in signals.items():
                self.solver.horizon.note_moment(output, signal, moment.step)

    def _pass_on(self, layer: Layer, moment: Moment, currents: AtOnce, handed: AtOnce) -> None:
        """Pulls signals on currents through the synapse, at what it read in this very step."""
        names = [source.value for source in layer.sources]
        values = {name: self.as_read(name, moment.values[name, ""]) for name in names}
        norms = [moment.values[pair] for pair in norm_pairs(layer)]
        wanted = {source.value for source in layer.sources if source.origin in self.wanted}
        graph = LocalGraph(layer, [[Point(values, norms)]], self.statics, wanted)
        self.solver.add_weights(*graph.weight_gradients([currents]))
        upstream = graph.upstream(0, currents, values)
        for source in layer.sources:
            signal = upstream.get(source.value)
            if signal is None:
                continue
            if source.origin in self.made and not source.delay:
                handed[source.origin] = handed[source.origin] + signal if source.origin in handed else signal
            elif moment.step >= source.delay:
                made = moment.step - source.delay
                index, time = self.bins.of(made), self.solver.horizon
                self.solver.add(source.origin, 0, index, signal)
                if time is not None:
                    time.note(source.origin, signal, time.at(made), index)
