"""Runs the emitted code of a program: prologue, steps, epilogue."""

from __future__ import annotations

import dataclasses
import itertools
from collections.abc import Callable, Mapping, Sequence
from typing import Any

import torch
from torch import Tensor, nn

from tracecompile.analysis.linearity import draws_random, refuse_active_dropout
from tracecompile.diagnostics.report import ExecutionReport
from tracecompile.errors import InvalidInput
from tracecompile.exact import only_exact_value
from tracecompile.program import StepProgram
from tracecompile.rules.written import in_sequence
from tracecompile.runtime.anchors import of_chosen, with_anchors
from tracecompile.runtime.anew import made_anew
from tracecompile.runtime.backward import StandIns
from tracecompile.runtime.bins import Bins, Clock, SequenceClock
from tracecompile.runtime.chunked.choice import Choice, choose
from tracecompile.runtime.chunked.compiled import CompiledScans, Kernels
from tracecompile.runtime.chunked.run import ChunkRun
from tracecompile.runtime.chunked.scans import Scans
from tracecompile.runtime.collector import Collector
from tracecompile.runtime.differentiable import GradientFlow
from tracecompile.runtime.epilogue import Again
from tracecompile.runtime.ports import find_ports
from tracecompile.runtime.record import Record
from tracecompile.runtime.replay import random_states
from tracecompile.runtime.rerun import Prepared, Rerun, Steps
from tracecompile.runtime.window import Window


class Executor:
    """The code of one program, ready to run on tensors of any batch size, length, dtype and device."""

    def __init__(self, program: StepProgram, kernels: Kernels) -> None:
        """Takes a program that has gone through all passes, and what has been compiled for its module already."""
        assert program.emitted is not None
        assert program.statics is not None
        self.program = program
        self.emitted = program.emitted
        self.static_code = program.statics
        self.ports = find_ports(program)
        self.flow = GradientFlow(program)
        self.anew = made_anew(program) if program.epilogue_again else frozenset[int]()
        self.rule = program.settings.rule
        self.draws = any(draws_random(program, node) for node in program.prologue.graph.nodes)
        self.observer: Callable[..., None] = Record.add
        """Takes every recorded step; a diagnostic may put itself in front."""
        self.stepped = False
        """Whether sequences are run by the reference, one step after the other, whatever the settings say."""
        self.as_they_are, self.compiled = Scans(), CompiledScans(kernels)
        self.choice: Choice | None = None
        """What ran the last recorded sequence."""

    # Pieces.

    def attributes(self, paths: Sequence[str], device: torch.device | None) -> list[Any]:
        """Returns the model's parameters and buffers as they are now."""
        found = [self.program.resolve(path) for path in paths]
        return [_on_device(value, device) for value in found]

    def prepare(self, leaves: Sequence[Any], given: Sequence[Tensor] | None = None) -> Prepared:
        """Runs the prologue.

        Args:
            leaves: The call's leaves.
            given: States that the caller handed in instead of the initial ones.
        """
        device = next((leaf.device for leaf in leaves if isinstance(leaf, Tensor)), None)
        code = self.emitted.prologue if given is None else self.emitted.arguments
        attributes = self.attributes(self.emitted.prologue_attributes, device)
        found = code(*attributes, *leaves)
        inputs, invariants = found[:2]
        initial = self.with_statistics(given if given is not None else found[2])
        missing = [c.name for c, value in zip(self.program.carries, initial, strict=True) if value is None]
        if missing:
            raise InvalidInput(
                f"The model needs a state for {', '.join(missing)}.", "Hand it in, as the model itself requires it."
            )
        return Prepared(tuple(inputs), tuple(invariants), tuple(initial), device)

    def with_statistics(self, states: Sequence[Any]) -> tuple[Any, ...]:
        """Returns states with the statistics as the model holds them now: copies, since these will move."""
        found = dict(zip((carry.name for carry in self.program.carries), states, strict=False))
        for carry in self.program.carries:
            if carry.statistic:
                found[carry.name] = self.program.resolve(carry.statistic).detach().clone()
        return tuple(found.values())

    def move_statistics(self, names: Sequence[str], values: Sequence[Tensor]) -> None:
        """Leaves in the model what statistics have come to; in place, since others hold these tensors."""
        with torch.no_grad():
            for name, value in zip(names, values, strict=True):
                if name:
                    self.program.resolve(name).copy_(value)

    def statics(self, prepared: Prepared, stand_ins: StandIns | None = None) -> dict[str, Any]:
        """Returns what does not change over time, with its graph if grad is enabled.

        Args:
            prepared: Start of the sequence.
            stand_ins: Filled with a leaf for each Parameter, to which the graph then leads instead.
        """
        attributes = self.attributes(self.static_code.attributes, prepared.device)
        if stand_ins is not None:
            attributes = [_stand_in(value, stand_ins) for value in attributes]
        values = self.static_code.graph(*attributes, *prepared.invariants)
        return dict(zip(self.static_code.names, values, strict=True))

    def finish(
        self,
        collected: Sequence[Any],
        states: Sequence[Tensor],
        invariants: Sequence[Any],
        rerun: Rerun | None = None,
        steps: int = 0,
    ) -> list[Any]:
        """Runs the epilogue; where a rerun is given so that it keeps nothing of all steps for backward."""
        device = next((s.device for s in (*collected, *states) if isinstance(s, Tensor)), None)
        attributes = self.attributes(self.emitted.epilogue_attributes, device)
        given = [*attributes, *collected, *states, *invariants]
        if rerun is None:
            leaves = list(self.emitted.epilogue(*given))
        else:
            again = Again(self.emitted.epilogue, self.program, rerun, steps, len(attributes), self.anew)
            leaves = again.run(given)
        count = len(leaves) - len(self.program.statistics)
        self.move_statistics(self.program.statistics, leaves[count:])
        if self.program.kind == "sequence":
            self.move_statistics([carry.statistic for carry in self.program.carries], states)
        return leaves[:count]

    def wants_record(self, prepared: Prepared) -> bool:
        """Tells whether this call will be trained by the rule.

        Raises:
            UnsupportedOperation: It would be, but a dropout in the step is active.
        """
        if not torch.is_grad_enabled() or self.rule == "bptt":
            return False
        refuse_active_dropout(self.program)
        trained = any(parameter.requires_grad for parameter in self.program.root.parameters())
        return trained or any(value.requires_grad for value in (*prepared.inputs, *prepared.initial))

    # Whole sequences.

    def sequence(
        self, leaves: Sequence[Any], bins: int, left: Sequence[Tensor] | None = None
    ) -> tuple[list[Any], Window | None, list[Tensor]]:
        """Runs a whole sequence, for a model that keeps states from the states that the last sequence left.

        Returns:
            The leaves of the model's result, the window where it was recorded, and the last states.
        """
        drawn = random_states() if self.draws else []
        prepared = self.prepare(leaves)
        # A state that starts as a row of a tensor of all steps would hold the whole tensor.
        apart = [tuple(map(_apart, values)) for values in (prepared.initial, prepared.invariants)]
        prepared = dataclasses.replace(prepared, initial=apart[0], invariants=apart[1])
        if left is not None:
            prepared = self._going_on(prepared, left)
        steps = self._length(prepared)
        if self.wants_record(prepared):
            return self._recorded(leaves, prepared, steps, bins, drawn)
        states: Sequence[Tensor] = prepared.initial
        collector = Collector(self.program, steps)
        statics = self._argument_statics(self.statics(prepared))
        for time in range(steps):
            inputs = self._slices(prepared.inputs, time)
            outputs, states = self.emitted.plain(*inputs, *prepared.invariants, *states, *statics)
            collector.add(outputs)
        return self.finish(collector.results(), states, prepared.invariants), None, _all_detached(states)

    def _going_on(self, prepared: Prepared, left: Sequence[Tensor]) -> Prepared:
        """Starts from what the last sequence left of the states that the model keeps."""
        initial = []
        for carry, fresh, state in zip(self.program.carries, prepared.initial, left, strict=False):
            if carry.kept and state.shape != fresh.shape:
                raise InvalidInput(
                    f"The state {carry.name} is left over from a batch of another size.",
                    "Call reset() of the converted module before a sequence that does not go on from the last one.",
                )
            initial.append(state if carry.kept else fresh)
        initial += prepared.initial[len(left) :]
        return Prepared(prepared.inputs, prepared.invariants, tuple(initial), prepared.device)

    def _recorded(
        self, leaves: Sequence[Any], prepared: Prepared, steps: int, bins: int, drawn: Sequence[Tensor]
    ) -> tuple[list[Any], Window, list[Tensor]]:
        window = self.open_window(SequenceClock(Bins.over(steps, bins)), prepared)
        collector = Collector(self.program, steps)
        rerun = Rerun(self, leaves, prepared, window.statics, drawn)
        given = dict(zip((x.name for x in self.program.inputs), prepared.inputs, strict=True))
        choice = choose(self.program, steps, given)
        if self.stepped or self.observer is not Record.add:
            choice = Choice("eager", 1, "every step is looked at by itself")
        self.choice = choice
        states: Sequence[Tensor] = ()
        with torch.no_grad():
            if choice.chunk == 1:
                for outputs, states, recorded in self.steps(prepared, prepared.initial, window.statics):
                    self.observer(window.record, states, *recorded)
                    collector.add(outputs)
                rerun.final = states
            else:
                states = self._chunked(prepared, window, collector, choice)
            collected = collector.results()
            window.record.let_go()
        if self.rule == "measured":
            window.rerun = rerun
        axes = {x.name: (value, x.dim) for x, value in zip(self.program.inputs, prepared.inputs, strict=True)}
        flags = self.flow.over(prepared.inputs, prepared.invariants, prepared.initial, steps)
        ports = [port if learns else None for port, learns in zip(self.ports, itertools.chain(*flags), strict=True)]
        anchors = window.sequence_anchors(ports, [*collector.latest, *states], axes)
        last = _all_detached(states)
        results = with_anchors(collected, of_chosen(self.program, anchors[: len(collected)]))
        states = with_anchors(states, anchors[len(collected) :])
        again = rerun if self.program.epilogue_again else None
        return self.finish(results, states, prepared.invariants, again, steps), window, last

    def _chunked(self, prepared: Prepared, window: Window, collector: Collector, choice: Choice) -> list[Tensor]:
        """Runs a recorded sequence in chunks; returns the last states."""
        statics = {name: _detached(value) for name, value in window.statics.items()}
        states = [state.detach() for state in prepared.initial]
        scans = self.compiled if choice.backend == "inductor" else self.as_they_are
        scans.begin()
        run = ChunkRun(self.program, scans, window.record, statics, states)
        whole = {
            x.name: v.detach().movedim(x.dim, 0) for x, v in zip(self.program.inputs, prepared.inputs, strict=True)
        }
        with in_sequence([unit.step for unit in self.program.units if unit.step is not None]):
            for outputs in run.chunks(whole, choice.chunk):
                collector.add_chunk(outputs)
        return list(run.states.values())

    def steps(self, prepared: Prepared, initial: Sequence[Tensor], statics: Mapping[str, Any]) -> Steps:
        """Runs the traced steps of a sequence without a graph; yields (outputs, next states, what is recorded)."""
        states: Sequence[Tensor] = [state.detach() for state in initial]
        inputs_of = [value.detach() for value in prepared.inputs]
        values = [_detached(value) for value in self._argument_statics(statics)]
        invariants = [_detached(value) for value in prepared.invariants]
        # The reference calls the user's functions as they are; writing them down takes longer than a few steps do.
        with in_sequence([] if self.stepped else [self.emitted.traced]):
            for time in range(self._length(prepared)):
                inputs = self._slices(inputs_of, time)
                (outputs, states), *recorded = self.emitted.traced(*inputs, *invariants, *states, *values)
                yield outputs, states, recorded

    def _argument_statics(self, statics: Mapping[str, Any]) -> list[Any]:
        placeholders = set(self.program.invariants)
        return [statics[name] for name in self.static_code.names if name not in placeholders]

    def _slices(self, inputs: Sequence[Tensor], time: int) -> list[Tensor]:
        return [value.select(x.dim, time) for x, value in zip(self.program.inputs, inputs, strict=True)]

    def _length(self, prepared: Prepared) -> int:
        if self.program.length is not None:
            return self.program.length
        lengths = {value.shape[x.dim] for x, value in zip(self.program.inputs, prepared.inputs, strict=True)}
        if len(lengths) > 1 or 0 in lengths:
            raise InvalidInput(
                f"The inputs have {sorted(lengths)} time steps.", "Pass inputs of one length, at least one step."
            )
        return int(lengths.pop())

    def open_window(self, clock: Clock, prepared: Prepared) -> Window:
        """Opens a window that begins with the prepared states."""
        stand_ins: StandIns = {}
        statics = self.statics(prepared, stand_ins)
        return Window(self.program, clock, statics, stand_ins, prepared.initial)

    def execution(self) -> ExecutionReport | None:
        """Says how the last recorded sequence was run, None before the first."""
        if self.choice is None:
            return None
        kernels = self.compiled.kernels
        obstacles = tuple(
            f"{', '.join(self.program.layers[layer].name for layer in layers)}: not compiled, {reason}"
            for layers, reason in self.compiled.obstacles.items()
        )
        return ExecutionReport(
            self.choice.backend, self.choice.chunk, self.choice.reason, kernels.count, kernels.seconds, obstacles
        )

    # Single steps.

    def time_axes(self) -> list[int] | None:
        """Returns the time axis of each sequence input where these are the call's own arguments, else None."""
        prologue = self.program.prologue
        placeholders = [node for node in prologue.graph.nodes if node.op == "placeholder"]
        output = next(node for node in reversed(prologue.graph.nodes) if node.op == "output")
        given = [
            (x.dim, sequence)
            for x, sequence in zip(self.program.inputs, output.args[0][0], strict=True)
            if not only_exact_value(self.program, x.name)
        ]
        return [dim for dim, _ in given] if [sequence for _, sequence in given] == placeholders else None

    def one_step(self, prepared: Prepared, states: Sequence[Tensor] | None) -> Prepared:
        """Takes the only step out of sequences of length one, to go on from the given states."""
        return Prepared(
            tuple(self._slices(prepared.inputs, 0)),
            prepared.invariants,
            prepared.initial if states is None else self.with_statistics(states),
            prepared.device,
        )

    def step(
        self, prepared: Prepared, states: Sequence[Tensor], window: Window | None
    ) -> tuple[list[Tensor], list[Tensor]]:
        """Runs one step; returns outputs and next states as they are, without anchors.

        With a window the step is recorded.
        """
        inputs = prepared.inputs
        if window is None:
            statics = self._argument_statics(self.statics(prepared))
            outputs, states = self.emitted.plain(*inputs, *prepared.invariants, *states, *statics)
        else:
            with torch.no_grad():
                statics = [_detached(value) for value in self._argument_statics(window.statics)]
                arguments = [_detached(value) for value in (*inputs, *prepared.invariants, *states)]
                (outputs, states), *recorded = self.emitted.traced(*arguments, *statics)
                self.observer(window.record, states, *recorded)
        self.move_statistics([carry.statistic for carry in self.program.carries], states)
        return list(outputs), list(states)


def _stand_in(value: Any, stand_ins: StandIns) -> Any:
    """Returns a leaf for a Parameter: its hooks must see its whole gradient once, and not a part of it."""
    if not isinstance(value, nn.Parameter):
        return value
    return stand_ins.setdefault(value, value.detach().requires_grad_(value.requires_grad))


def _apart(value: Any) -> Any:
    """Returns a tensor in memory of its own, where it is a part of a larger one."""
    is_part = isinstance(value, Tensor) and value.untyped_storage().nbytes() > value.numel() * value.element_size()
    return value.clone() if is_part else value


def _all_detached(states: Sequence[Tensor]) -> list[Tensor]:
    return [state.detach() for state in states]


def _detached(value: Any) -> Any:
    return value.detach() if isinstance(value, Tensor) else value


def _on_device(value: Any, device: torch.device | None) -> Any:
    """Moves a constant of the capture to where the input is; parameters and buffers are where the user put them."""
    if device is None or not isinstance(value, Tensor) or isinstance(value, nn.Parameter):
        return value
    return value if value.device == device or value.ndim == 0 else value.to(device)
