"""Layers of steps written by hand, and what a broken pass would make of them."""

from __future__ import annotations

import operator
from dataclasses import replace

import pytest
from support.broken import (
    Damage,
    changed_by,
    changed_layer,
    edited,
    numbers_changed,
    require_caught,
    results_changed,
)
from support.hand_built import STEPS, before, hand_built
from torch import fx, nn

from tracecompile.errors import PassError
from tracecompile.layers import Layer
from tracecompile.passes.partition_layers import PartitionLayers, layer_reading
from tracecompile.program import StepProgram


def partitioned(name: str) -> StepProgram:
    return PartitionLayers()(before(PartitionLayers, hand_built(name)))


def test_every_node_is_in_one_layer() -> None:
    spiking, head = partitioned("lateral").layers
    assert [(s.value, s.origin, s.delay) for s in spiking.sources] == [("x", "x", 0), ("z", "spike", 1)]
    assert (spiking.kind, head.kind) == ("spiking", "junction")
    assert head.sources[0].origin == "spike"
    assert set(spiking.nodes) | set(head.nodes) == {
        *("fc", "lateral", "add", "mul", "add_1", "sub", "spike", "sub_1", "readout")
    }


def test_a_layer_reads_another_through_its_spikes() -> None:
    lower, upper = partitioned("two layers").layers
    assert (lower.kind, lower.outputs, upper.kind) == ("spiking", ("spike",), "readout")
    assert [source.value for source in upper.sources] == ["spike"]
    assert layer_reading((lower, upper), upper.sources[0]) == 0
    assert layer_reading((lower, upper), lower.sources[0]) is None


@pytest.mark.parametrize(
    ("name", "reset"), [("one layer", "in graph"), ("detached", "detached"), ("without reset", "none")]
)
def test_the_reset_is_told_by_detach(name: str, reset: str) -> None:
    (layer,) = partitioned(name).layers
    assert (layer.reset, layer.state_kinds) == (reset, ("membrane",))


def test_a_delay_line_is_read_where_it_was_made() -> None:
    (layer,) = partitioned("delay line").layers
    assert [(s.value, s.origin, s.delay) for s in layer.sources] == [("last", "x", 1)]


@pytest.mark.parametrize("name", STEPS)
def test_the_step_stays_as_it_is(name: str) -> None:
    program = before(PartitionLayers, hand_built(name))
    found = PartitionLayers()(program)
    assert (found.step, found.cores, found.carries) == (program.step, program.cores, program.carries)


def test_partition_needs_cores() -> None:
    with pytest.raises(PassError, match="partition_layers cannot run: no core"):
        PartitionLayers()(hand_built("one layer"))


def without_last_layer(program: StepProgram) -> StepProgram:
    return program.evolve(layers=program.layers[:-1])


def backwards(program: StepProgram) -> StepProgram:
    return program.evolve(layers=program.layers[::-1])


def in_a_second_layer(program: StepProgram) -> StepProgram:
    first, second = program.layers
    return program.evolve(layers=(first, replace(second, nodes=(*second.nodes, first.nodes[0]))))


def late(layer: Layer) -> Layer:
    """Says that what it reads was made a step earlier than it was."""
    return replace(layer, sources=tuple(replace(source, delay=source.delay + 1) for source in layer.sources))


def another_threshold(layer: Layer) -> Layer:
    assert layer.core is not None
    return replace(layer, core=edited(layer.core, numbers_changed(1.0, 2.0)))


def turned_around(layer: Layer) -> Layer:
    """Takes the input with the other sign."""

    def edit(graph: fx.Graph) -> None:
        x = next(node for node in graph.nodes if node.op == "placeholder")
        readers = list(x.users)
        with graph.inserting_after(x):
            negative = graph.call_function(operator.neg, (x,))
        for reader in readers:
            reader.replace_input_with(x, negative)

    return replace(layer, synapse=edited(layer.synapse, edit))


def copied_weights(layer: Layer) -> Layer:
    """Calls a copy of the model's own module, which will not learn with it."""
    return replace(layer, synapse=edited(layer.synapse, lambda graph: None, fc=nn.Linear(3, 4)))


def state_instead_of_result(layer: Layer) -> Layer:
    """Hands the argument of its spikes on in the place of the membrane."""
    assert layer.core is not None

    edit = results_changed(lambda outputs, states: (outputs, (outputs[0].all_input_nodes[0],)))
    return replace(layer, core=edited(layer.core, edit))


def mute(layer: Layer) -> Layer:
    """Keeps its spikes to itself."""
    assert layer.core is not None
    return replace(layer, core=edited(layer.core, results_changed(lambda _, states: ((), states))), outputs=())


def other_statics(program: StepProgram) -> StepProgram:
    """Computes the leak from something else."""
    assert program.statics is not None
    statics = replace(program.statics, attributes=tuple("fc.bias" for _ in program.statics.attributes))
    return program.evolve(statics=statics)


def no_statics(program: StepProgram) -> StepProgram:
    return program.evolve(statics=None)


BROKEN: dict[str, tuple[str, Damage, str]] = {
    "a node in at least one layer": ("lateral", without_last_layer, r"nodes in no layer: \['readout'\]"),
    "a node in at most one layer": ("lateral", in_a_second_layer, r"nodes in two layers: \['fc'\]"),
    "a synapse takes its sources": (
        "lateral",
        changed_by(0, lambda layer: replace(layer, sources=layer.sources[::-1])),
        r"the synapse of mem does not lead from \['z', 'x'\]",
    ),
    "a synapse makes the currents": (
        "one layer",
        changed_layer(0, currents=("fc", "x")),
        r"the synapse of .* does not lead from \['x'\] to \['fc', 'x'\]",
    ),
    "a core takes its states": (
        "one layer",
        changed_by(0, lambda layer: replace(layer, core_statics=("elsewhere",))),
        r"the core of .* does not lead from \['fc', 'mem', 'elsewhere'\]",
    ),
    "makers come first": ("two layers", backwards, "reads spike before it is made"),
    "a source was made when it says": ("delay line", changed_by(0, late), "reads last, which is not x 2 steps ago"),
    "a layer says what it is": ("two layers", changed_layer(1, kind="spiking"), "is a readout with states"),
    "a layer says what spikes": ("one layer", changed_layer(0, spikes=()), r"is a spiking with .* spikes \['spike'\]"),
    "every state is classified": (
        "one layer",
        changed_layer(0, state_kinds=()),
        "does not say what each of its states",
    ),
    "a state is something that there is": (
        "one layer",
        changed_layer(0, state_kinds=("memory",)),
        "does not say what each of its states",
    ),
    "the gate is told from the spike": (
        "detached",
        changed_layer(0, reset="in graph"),
        'the reset of .* is "detached" by what is detached',
    ),
    "and where nothing is detached": (
        "one layer",
        changed_layer(0, reset="detached"),
        'the reset of .* is "in graph" by what is detached',
    ),
    "there are static values": ("one layer", no_statics, "there are no static values"),
    "static values are those of the step": ("one layer", other_statics, "a static value is not that of the step"),
    "a core is that of the step": (
        "one layer",
        changed_by(0, another_threshold),
        "glued back, the layers are not the step: .*1.0.* has become .*2.0",
    ),
    "a synapse is that of the step": (
        "one layer",
        changed_by(0, turned_around),
        "glued back, the layers are not the step: x has become neg",
    ),
    "a synapse calls the model's own modules": (
        "one layer",
        changed_by(0, copied_weights),
        "glued back, the layers call another fc",
    ),
    "a state is that of the step": (
        "one layer",
        changed_by(0, state_instead_of_result),
        "glued back, the layers are not",
    ),
    "all that the user reads is made": (
        "one layer",
        changed_by(0, mute),
        "no layer makes 'spike'",
    ),
}


@pytest.mark.parametrize("promise", BROKEN)
def test_a_broken_pass_is_caught_by_name(promise: str) -> None:
    name, damage, said = BROKEN[promise]
    require_caught(PartitionLayers, hand_built(name), damage, said)
