"""Cuts the step into layers that talk only through spikes, inputs and learning signals."""

from __future__ import annotations

from typing import ClassVar, get_args

from tracecompile.analysis.moving import Moving
from tracecompile.analysis.naming import layer_kind
from tracecompile.analysis.spikes import reset_style, spike_nodes
from tracecompile.analysis.statics import static_nodes
from tracecompile.graphs.extract import extract_layers, extract_statics
from tracecompile.layers import Layer, Source, StateKind
from tracecompile.passes.base import Pass
from tracecompile.passes.compared import difference, returned_by, taken_by
from tracecompile.passes.glued import differs_from_step, glued
from tracecompile.program import StepProgram, is_tensor, step_results


class PartitionLayers(Pass):
    """Gives every node of the step to exactly one layer and extracts the local graphs.

    requires: cores, where anything spikes.
    ensures: every node that changes over time is in exactly one layer, or only moves statistics. A layer computes from
        nothing but inputs, static values, its own states, and what it or a layer before it has made. It says what it
        is, what each of its states is, and how its reset meets the gradient. Glued back together, the layers are the
        step, node by node and therefore bit for bit.

        before: cur = fc(x); <core of mem: spk>; cur_1 = fc2(spk); <core of mem2: out>; return (out,)
        after:  layer lif1: synapse(x) = fc(x), core(cur, mem) -> (spk), (mem_2)
                layer lif2: synapse(spk) = fc2(spk), core(cur_1, mem2) -> (out), (mem2_2)
    """

    name: ClassVar[str] = "partition_layers"

    def requires(self, program: StepProgram) -> str | None:
        """See the class."""
        return None if program.cores or not spike_nodes(program) else "no core was found"

    def run(self, program: StepProgram) -> StepProgram:
        """See the class."""
        return program.evolve(layers=extract_layers(program), statics=extract_statics(program))

    def ensures(self, before: StepProgram, after: StepProgram) -> str | None:
        """See the class."""
        promises = (_each_in_one_layer, _each_takes_its_own, _makers_first, _said_what_they_are, _statics, _whole)
        return next((fault for promise in promises if (fault := promise(after)) is not None), None)


def _each_in_one_layer(program: StepProgram) -> str | None:
    static = static_nodes(program)
    owned = [name for layer in program.layers for name in layer.nodes]
    if len(owned) != len(set(owned)):
        return f"nodes in two layers: {sorted({name for name in owned if owned.count(name) > 1})}"
    live = {
        node.name
        for node in program.step.graph.nodes
        if node.op not in ("placeholder", "output") and node not in static and is_tensor(node)
    }
    missing = live - set(owned) - {node.name for node in Moving(program).nodes}
    return f"nodes in no layer: {sorted(missing)}" if missing else None


def _each_takes_its_own(program: StepProgram) -> str | None:
    for layer in program.layers:
        takes = [*(source.value for source in layer.sources), *layer.synapse_statics]
        if taken_by(layer.synapse) != takes or len(returned_by(layer.synapse)) != len(layer.currents):
            return f"the synapse of {layer.name} does not lead from {takes} to {list(layer.currents)}"
        if layer.core is None:
            continue
        takes = [*layer.currents, *layer.states, *layer.core_statics]
        results = tuple(map(len, returned_by(layer.core)))
        if taken_by(layer.core) != takes or results != (len(layer.outputs), len(layer.states)):
            return f"the core of {layer.name} does not lead from {takes} to {list(layer.outputs)} and its states"
    return None


def _makers_first(program: StepProgram) -> str | None:
    """Returns which layer reads what is not made yet, or was not where and when it says."""
    following = zip(program.carries, step_results(program.step)[1], strict=True)
    handed_on = {carry.placeholder: node.name for carry, node in following if not carry.statistic}
    made = (
        {x.name for x in program.inputs}
        | set(program.draws.names)
        | {carry.placeholder for carry in program.carries if carry.statistic}
    )
    for layer in program.layers:
        for source in layer.sources:
            origin = source.value
            for _ in range(source.delay):
                origin = handed_on.get(origin, "")
            if origin != source.origin:
                return f"{layer.name} reads {source.value}, which is not {source.origin} {source.delay} steps ago"
            if not source.delay and origin not in made:
                return f"{layer.name} reads {origin} before it is made"
        made.update(layer.outputs)
    return None


def _said_what_they_are(program: StepProgram) -> str | None:
    spikes = spike_nodes(program)
    nodes = {node.name: node for node in program.step.graph.nodes}
    cores = {name: core for core in program.cores for name in core.nodes}
    for layer in program.layers:
        core = next((cores[name] for name in layer.nodes if name in cores), None)
        kind = "junction" if core is None else layer_kind(core)
        states, fires = ((), ()) if core is None else (core.states, core.spikes)
        if (layer.kind, layer.states, layer.spikes, layer.core is None) != (kind, states, fires, core is None):
            return f"{layer.name} is a {kind} with states {list(states)} and spikes {list(fires)}, and does not say so"
        if len(layer.state_kinds) != len(states) or not set(layer.state_kinds) <= set(get_args(StateKind)):
            return f"{layer.name} does not say what each of its states {list(states)} is"
        reset = "none" if core is None else reset_style(program, [nodes[name] for name in core.nodes], spikes)
        if layer.reset != reset:
            return f'the reset of {layer.name} is "{reset}" by what is detached between spike and state'
    return None


def _statics(program: StepProgram) -> str | None:
    """Returns which value that does not change over time is not that of the step."""
    statics = program.statics
    if statics is None:
        return "there are no static values"
    nodes = {node.name: node for node in program.step.graph.nodes}
    arguments = [node for node in statics.graph.graph.nodes if node.op == "placeholder"]
    attributes = dict(zip(statics.attributes, arguments, strict=False))
    known = {node: attributes[str(node.target)] for node in nodes.values() if str(node.target) in attributes}
    known |= {nodes[node.name]: node for node in arguments if node.name in program.invariants}
    results = returned_by(statics.graph)
    fault = difference(zip(map(nodes.__getitem__, statics.names), results, strict=True), known)
    return None if fault is None else f"a static value is not that of the step: {fault}"


def _whole(program: StepProgram) -> str | None:
    try:
        glue, results = glued(program)
    except KeyError as missing:
        return f"no layer makes {missing}, which the step needs"
    foreign = sorted(target for target, module in glue.owned.items() if module is not program.resolve(target))
    if foreign:
        return f"glued back, the layers call another {', '.join(foreign)} than the model's"
    fault = differs_from_step(program, glue.module(results, "Glued").graph, results)
    return None if fault is None else f"glued back, the layers are not the step: {fault}"


def layer_reading(layers: tuple[Layer, ...], source: Source) -> int | None:
    """Returns the index of the layer that makes a source's value, or None for an input."""
    return next((index for index, layer in enumerate(layers) if source.origin in layer.outputs), None)
