"""Cores of steps written by hand, and what a broken pass would say of them."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import replace
from typing import Any

import pytest
from support.broken import Damage, require_caught
from support.hand_built import hand_built, no_neurons, program_of

from tracecompile.errors import NoSpikingLayer
from tracecompile.layers import Core
from tracecompile.passes.find_spiking_layers import FindSpikingLayers
from tracecompile.program import StepProgram


def cores_of(name: str) -> tuple[Core, ...]:
    return FindSpikingLayers()(hand_built(name)).cores


def test_finds_the_core_of_a_neuron() -> None:
    (core,) = cores_of("one layer")
    assert core.states == ("mem",)
    assert core.spikes == ("spike",)
    assert core.nodes == ("mul", "add", "sub", "spike", "sub_1")


def test_a_detached_gate_belongs_to_its_neuron() -> None:
    (core,) = cores_of("detached")
    assert core.nodes == ("mul", "add", "sub", "spike", "detach", "sub_1")


def test_a_readout_is_a_core_that_does_not_spike() -> None:
    spiking, readout = cores_of("two layers")
    assert (spiking.states, spiking.spikes) == (("mem",), ("spike",))
    assert (readout.states, readout.spikes) == (("out",), ())


def test_a_lateral_product_is_not_part_of_the_core() -> None:
    (core,) = cores_of("lateral")
    assert core.states == ("mem",)
    assert not {"fc", "lateral", "add", "readout"} & set(core.nodes)


def test_a_delay_line_is_the_state_of_no_core() -> None:
    (core,) = cores_of("delay line")
    assert core.states == ("mem",)


def test_a_step_without_neurons_is_refused() -> None:
    with pytest.raises(NoSpikingLayer, match="no state"):
        FindSpikingLayers()(program_of(no_neurons, {}))


@pytest.mark.parametrize("name", ["one layer", "lateral", "two layers", "mutual"])
def test_a_step_that_nothing_crosses_stays_as_it_is(name: str) -> None:
    program = hand_built(name)
    assert FindSpikingLayers()(program).step is program.step


def first_core(**changes: Callable[[tuple[str, ...]], tuple[str, ...]]) -> Damage:
    """Returns what changes the names that the first core consists of."""

    def damage(program: StepProgram) -> StepProgram:
        first, *others = program.cores
        made: dict[str, Any] = {field: change(getattr(first, field)) for field, change in changes.items()}
        return program.evolve(cores=(replace(first, **made), *others))

    return damage


def joined(program: StepProgram) -> StepProgram:
    """Makes one core of two, over the product between them."""
    one, two = program.cores
    both = Core((*one.nodes, *two.nodes), (*one.states, *two.states), (*one.spikes, *two.spikes))
    return program.evolve(cores=(both,))


def doubled(program: StepProgram) -> StepProgram:
    return program.evolve(cores=(*program.cores, replace(program.cores[0], states=(), spikes=())))


def nothing(names: tuple[str, ...]) -> tuple[str, ...]:
    return ()


BROKEN: dict[str, tuple[str, Damage, str]] = {
    "a node of the step": (
        "one layer",
        first_core(nodes=lambda names: (*names, "nowhere")),
        r"nodes that the step lacks: \['nowhere'\]",
    ),
    "a node in one core": ("one layer", doubled, "mul is in two cores"),
    "convex": ("two layers", joined, "the core of add_1 is not convex"),
    "a synapse is no core": (
        "one layer",
        first_core(nodes=lambda names: ("fc", *names)),
        r"not computed neuron by neuron: \['fc'\]",
    ),
    "a head is no core": (
        "lateral",
        first_core(nodes=lambda names: (*names, "readout")),
        r"not computed neuron by neuron: \['readout'\]",
    ),
    "an input is no state": (
        "one layer",
        first_core(states=lambda names: (*names, "x")),
        r"not computed neuron by neuron: \['x'\]",
    ),
    "what spikes is in a core": (
        "without reset",
        first_core(nodes=lambda names: names[:-1], spikes=nothing),
        r"what spikes is in no core: \['spike'\]",
    ),
    "a surrogate is recognised": (
        "one layer",
        first_core(spikes=nothing),
        r"spikes are \['spike'\], the cores say \[\]",
    ),
    "what does not spike is no spike": (
        "one layer",
        first_core(spikes=lambda names: (*names, "sub")),
        r"spikes are \['spike'\], the cores say \['spike', 'sub'\]",
    ),
    "every state is classified": (
        "one layer",
        first_core(states=nothing),
        r"a recurrence is not that of one core: \['mem', 'mul', 'add', 'sub', 'spike', 'sub_1'\]",
    ),
    "a membrane ends in its core": (
        "one layer",
        first_core(nodes=lambda names: names[:-1]),
        "a recurrence is not that of one core",
    ),
    "the gate of the reset is in the core": (
        "detached",
        first_core(nodes=lambda names: tuple(name for name in names if name != "detach"), spikes=lambda n: n[:1]),
        "is not convex",
    ),
    "a delay line is no state of a core": (
        "lateral",
        first_core(states=lambda names: (*names, "z")),
        r"states of cores that do not come back to themselves: \['z'\]",
    ),
}


@pytest.mark.parametrize("promise", BROKEN)
def test_a_broken_pass_is_caught_by_name(promise: str) -> None:
    name, damage, said = BROKEN[promise]
    require_caught(FindSpikingLayers, hand_built(name), damage, said)
