"""Gives every value that a synapse reads one trace buffer."""

from __future__ import annotations

import re
from collections.abc import Collection, Mapping
from dataclasses import replace
from difflib import get_close_matches
from typing import ClassVar

import torch
from torch import fx

from tracecompile.errors import InvalidInput, UnsupportedOperation
from tracecompile.layers import Accrual, Trace
from tracecompile.passes.base import Pass
from tracecompile.program import StepProgram, example_value
from tracecompile.rules import rule_of


class InsertInputTraces(Pass):
    """Declares the traces: one per distinct source and decay, whoever reads it.

    requires: layers.
    ensures: every source of every layer has exactly one trace for that layer's decay, which the step carries under a
        name of its own. Where the rule records nothing the program stays the same.

        before: layer a reads x; layer b reads spk; layer c reads spk
        after:  traces x (read by a), spk (read by b and c)

    The buffers themselves are made at the first step, from the batch size and device of that step.
    """

    name: ClassVar[str] = "insert_input_traces"

    def requires(self, program: StepProgram) -> str | None:
        """See the class."""
        return None if program.layers else "there are no layers"

    def run(self, program: StepProgram) -> StepProgram:
        """See the class."""
        decays = _decays(program)
        if not rule_of(program.settings).records:
            return program
        layers = tuple(replace(layer, decay=decays[layer.name]) for layer in program.layers)
        nodes = {node.name: node for node in program.step.graph.nodes}
        readers: dict[tuple[str, float | None], list[str]] = {}
        for layer in program.layers:
            for source in layer.sources:
                _refuse_without_mean(nodes[source.value], program.settings.rule)
                readers.setdefault((source.value, decays[layer.name]), []).append(layer.name)
        traces = tuple(Trace(value, decay, tuple(names)) for (value, decay), names in readers.items())
        taken, kept = set(nodes), []
        for trace in traces:
            kept.append(_kept(trace, traces, taken))
            taken.add(kept[-1].name)
        return program.evolve(layers=layers, traces=traces, traces_kept=tuple(kept))

    def ensures(self, before: StepProgram, after: StepProgram) -> str | None:
        """See the class."""
        if not rule_of(after.settings).records:
            return None if after is before else "the rule records nothing, and yet the program is another one"
        decays = _decays(after)
        strange = [layer.name for layer in after.layers if layer.decay != decays[layer.name]]
        if strange:
            return f"layers whose traces decay otherwise than was asked for: {strange}"
        read = {(s.value, layer.decay) for layer in after.layers for s in layer.sources}
        kept = [(trace.value, trace.decay) for trace in after.traces]
        if len(kept) != len(set(kept)) or set(kept) != read:
            return f"there is not one trace for each source and decay: {kept}"
        for trace in after.traces:
            if trace.readers != _readers(after, trace):
                return f"the trace of {trace.value} is not read by {', '.join(trace.readers)}"
        return _fault_of_carries(after)


def _readers(program: StepProgram, trace: Trace) -> tuple[str, ...]:
    return tuple(
        layer.name
        for layer in program.layers
        if layer.decay == trace.decay and trace.value in (source.value for source in layer.sources)
    )


def _fault_of_carries(program: StepProgram) -> str | None:
    """Returns why the traces are not carries of the step, each under a name of its own."""
    carried = [(a.role, a.layer, a.pair, a.like, a.decay) for a in program.traces_kept]
    if carried != [("trace", "", (trace.value, ""), trace.value, trace.decay) for trace in program.traces]:
        return "the step does not carry each trace once"
    names = [accrual.name for accrual in program.traces_kept]
    taken = {node.name for node in program.step.graph.nodes}
    double = sorted(name for name in names if name in taken or names.count(name) > 1)
    return f"names that mean two things: {double}" if double else None


def _kept(trace: Trace, traces: tuple[Trace, ...], taken: Collection[str]) -> Accrual:
    """Returns a trace as it is carried, named after its value, and its decay where that has several."""
    alone = sum(other.value == trace.value for other in traces) == 1
    name = f"trace_{trace.value}" if alone else re.sub(r"\W", "_", f"trace_{trace.value}_{trace.decay}")
    return Accrual(unused(name, taken), "trace", "", (trace.value, ""), trace.value, trace.decay)


def unused(name: str, taken: Collection[str]) -> str:
    """Returns a name that nothing has yet: the model may keep a ``trace_x`` of its own."""
    while name in taken:
        name += "_"
    return name


def _refuse_without_mean(source: fx.Node, rule: str) -> None:
    """Refuses a source that has no mean: indices of an embedding, say. Of a truth it is the share of the steps."""
    value = example_value(source)
    if value.is_complex():
        raise UnsupportedOperation(
            f"The time step reads {source.name} as {value.dtype}, and the {rule} rule carries real numbers alone.",
            'Write its real and its imaginary part as two real tensors, or convert it with rule="exact".',
            next(iter(source.users), source).meta.get("where"),
        )
    if not value.is_floating_point() and value.dtype != torch.bool:
        reader = next(iter(source.users), source)
        raise UnsupportedOperation(
            f"The time step reads {source.name} as {value.dtype}, and whole numbers have no mean over time.",
            "Turn it into floating-point spikes or one-hot vectors before the loop.",
            reader.meta.get("where"),
        )


def _decays(program: StepProgram) -> dict[str, float | None]:
    """Returns each layer's decay, from the setting that is one number, a mapping by layer name, or None."""
    setting = program.settings.decay
    names = [layer.name for layer in program.layers]
    if not isinstance(setting, Mapping):
        return dict.fromkeys(names, setting)
    unknown = sorted(set(setting) - set(names))
    if unknown:
        near = get_close_matches(unknown[0], names, n=1)
        raise InvalidInput(
            f"decay names layers that do not exist: {', '.join(unknown)}.",
            f"{f'Write {near[0]!r}; the' if near else 'The'} layers are: {', '.join(names)}.",
        )
    return {name: setting.get(name) for name in names}
