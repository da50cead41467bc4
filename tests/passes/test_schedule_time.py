"""Blocks and units of steps written by hand, and what a broken pass would schedule."""

from __future__ import annotations

import operator
from collections.abc import Callable
from dataclasses import replace
from typing import Any

import pytest
import torch
from support.broken import Damage, require_caught
from support.hand_built import NEURONS, STEPS, Nodes, before, hand_built, leaky, neuron, program_of
from torch import fx

from tracecompile.errors import PassError
from tracecompile.layers import Block
from tracecompile.passes.schedule_time import ScheduleTime, changes_shape_at_first
from tracecompile.program import Carry, StepProgram
from tracecompile.units import Unit


def two_more(graph: fx.Graph, nodes: Nodes, first: fx.Node, between: Callable[[fx.Node], fx.Node]) -> list[fx.Node]:
    """Neurons, a layer of more, and a readout; returns what the readout says, and the states."""
    spikes, mem = neuron(graph, first, nodes["mem"])
    upper, mem_2 = neuron(graph, between(graph.call_module("lateral", (spikes,))), nodes["mem_2"])
    return [graph.call_module("readout", (upper,)), mem, mem_2, upper]


def normed_twice(graph: fx.Graph, nodes: Nodes) -> tuple[list[fx.Node], list[fx.Node]]:
    """Two layers of neurons by one normalisation, and a readout."""

    def normed(current: fx.Node) -> fx.Node:
        return graph.call_module("norm", (current,))

    read, *states = two_more(graph, nodes, normed(graph.call_module("fc", (nodes["x"],))), normed)
    return [read], states[:2]


def averaged(graph: fx.Graph, nodes: Nodes) -> tuple[list[fx.Node], list[fx.Node]]:
    """The spikes of the upper layer are added up in a statistic, which nothing reads."""
    read, *states, upper = two_more(graph, nodes, graph.call_module("fc", (nodes["x"],)), lambda current: current)
    return [read], [*states, graph.call_function(operator.add, (nodes["mean"], upper))]


def held_back(graph: fx.Graph, nodes: Nodes) -> tuple[list[fx.Node], list[fx.Node]]:
    """The same; the lower layer reads it."""
    current = graph.call_function(operator.sub, (graph.call_module("fc", (nodes["x"],)), nodes["mean"]))
    read, *states, upper = two_more(graph, nodes, current, lambda current: current)
    return [read], [*states, graph.call_function(operator.add, (nodes["mean"], upper))]


def held_back_alone(graph: fx.Graph, nodes: Nodes) -> tuple[list[fx.Node], list[fx.Node]]:
    """A layer that reads what it moves, and nothing else."""
    spikes, mem = neuron(graph, graph.call_function(operator.sub, (nodes["x"], nodes["mean"])), nodes["mem"])
    return [spikes], [mem, graph.call_function(operator.add, (nodes["mean"], spikes))]


IN_ORDER = {
    "normed twice": (normed_twice, ("mem", "mem_2")),
    "averaged": (averaged, ("mem", "mem_2", "mean")),
    "held back": (held_back, ("mem", "mem_2", "mean")),
    "held back alone": (held_back_alone, ("mem", "mean")),
}
"""Steps that do something in order, and their states, a statistic if there is a mean."""


def built(name: str) -> StepProgram:
    if name not in IN_ORDER:
        return hand_built(name)
    build, states = IN_ORDER[name]
    width = 3 if build is held_back_alone else NEURONS
    program = program_of(build, dict.fromkeys(states, width))
    carries = tuple(Carry(name, name, statistic="norm.running_mean" * (name == "mean")) for name in states)
    return program.evolve(carries=carries)


def scheduled(name: str) -> StepProgram:
    return ScheduleTime()(before(ScheduleTime, built(name)))


def test_what_feeds_itself_is_a_recurrent_block() -> None:
    assert scheduled("lateral").blocks == (Block((0,), True), Block((1,), False))


def test_layers_that_feed_each_other_are_one_block() -> None:
    assert scheduled("mutual").blocks == (Block((0, 1), True), Block((2,), False))


@pytest.mark.parametrize("name", ["one layer", "detached", "delay line", "normed"])
def test_what_does_not_feed_itself_is_not_recurrent(name: str) -> None:
    assert scheduled(name).blocks == (Block((0,), False),)


def test_a_synapse_is_computed_for_many_steps_at_once() -> None:
    lower, upper = scheduled("two layers").units
    assert [(unit.sources, unit.values) for unit in (lower, upper)] == [(("x",), ("fc",)), (("spike",), ("lateral",))]
    assert lower.fold is not None
    assert [node.name for node in lower.below.graph.nodes if node.op == "call_module"] == ["fc"]
    assert lower.step is not None
    assert "fc" not in {node.target for node in lower.step.graph.nodes if node.op == "call_module"}


def test_a_lateral_product_is_taken_step_by_step() -> None:
    unit, head = scheduled("lateral").units
    assert (unit.sources, unit.values, unit.carries) == (("x",), ("fc",), ("mem", "z"))
    assert unit.step is not None
    assert "lateral" in {node.target for node in unit.step.graph.nodes}
    assert head.step is None


def test_the_calls_of_a_step_model_are_units_of_one_step() -> None:
    program = before(ScheduleTime, hand_built("lateral")).evolve(kind="step")
    found = ScheduleTime()(program)
    assert [unit.layers for unit in found.units] == [(0,), (1,)]
    assert [(unit.alone, unit.in_turn) for unit in found.units] == [("each is a call of its own", True)] * 2
    assert found.notes == ()


@pytest.mark.parametrize(
    ("name", "turns", "mover"),
    [
        ("two layers", [False, False], None),
        ("normed", [False], None),
        ("normed twice", [True, True, False], None),
        ("averaged", [False, False, False], 1),
        ("held back", [True, True, False], 1),
        ("held back alone", [True], 0),
    ],
)
def test_what_a_step_does_in_order_makes_units_take_turns(name: str, turns: list[bool], mover: int | None) -> None:
    found = scheduled(name)
    assert [unit.in_turn for unit in found.units] == turns
    assert [bool(unit.alone) for unit in found.units] == [unit.fold is None for unit in found.units]
    assert [number for number, unit in enumerate(found.units) if unit.moves is not None] == (
        [] if mover is None else [mover]
    )
    assert found.notes == (("Every time step is taken by itself: " + found.units[0].alone + ".",) * all(turns))


def test_a_statistic_is_moved_by_a_graph_of_its_own() -> None:
    moves = scheduled("averaged").units[1].moves
    assert moves is not None
    assert (moves.reads, moves.statistics, moves.statics) == (("spike_1",), ("mean",), ())
    mean, spikes = torch.rand(2, 5, NEURONS)
    assert torch.equal(moves.graph(spikes, mean)[0], mean + spikes)


def test_what_mixes_the_samples_of_a_batch_is_taken_one_step_at_a_time() -> None:
    def mixing(graph: fx.Graph, nodes: Nodes) -> tuple[list[fx.Node], list[fx.Node]]:
        current = graph.call_method("flip", (graph.call_module("fc", (nodes["x"],)), 0))
        return [leaky(graph, current, nodes["mem"])], [leaky(graph, current, nodes["mem"])]

    (unit,) = ScheduleTime()(before(ScheduleTime, program_of(mixing, {"mem": NEURONS}))).units[:1]
    assert (unit.fold, unit.in_turn) == (None, False)
    assert unit.alone == "flip is not known to keep the samples of a batch apart"


def test_a_state_that_begins_in_another_shape_makes_the_first_step_another() -> None:
    program = before(ScheduleTime, hand_built("one layer"))
    assert not changes_shape_at_first(program)
    mem = next(node for node in program.step.graph.nodes if node.name == "mem")
    mem.meta["val"] = torch.zeros(())
    assert ScheduleTime()(program).first_apart


@pytest.mark.parametrize("name", STEPS)
def test_step_and_layers_stay_as_they_are(name: str) -> None:
    program = before(ScheduleTime, hand_built(name))
    found = ScheduleTime()(program)
    assert (found.step, found.layers, found.traces_kept) == (program.step, program.layers, program.traces_kept)


def test_a_schedule_needs_layers() -> None:
    with pytest.raises(PassError, match="schedule_time cannot run: there are no layers"):
        ScheduleTime()(hand_built("one layer"))


def blocks(*changed: Block) -> Damage:
    """Returns what puts other blocks in the place of those that there are, with their units."""

    def damage(program: StepProgram) -> StepProgram:
        units = {unit.layers: unit for unit in program.units}
        found = [replace(units[b.layers], recurrent=b.recurrent) for b in changed if b.layers in units]
        return program.evolve(blocks=changed, units=tuple(found))

    return damage


def unit(change: Callable[[Unit], Unit]) -> Damage:
    """Returns what changes the first unit."""
    return lambda program: program.evolve(units=(change(program.units[0]), *program.units[1:]))


def without(**attributes: Any) -> Damage:
    return unit(lambda each: replace(each, **attributes))


def moved_by(number: int) -> Damage:
    """Returns what lets another unit move the statistics."""

    def damage(program: StepProgram) -> StepProgram:
        (moves,) = (unit.moves for unit in program.units if unit.moves is not None)
        found = [replace(unit, moves=moves if place == number else None) for place, unit in enumerate(program.units)]
        return program.evolve(units=tuple(found))

    return damage


def standing_still(program: StepProgram) -> StepProgram:
    """Says that a statistic moves to what it is."""
    graph = fx.Graph()
    _, mean = graph.placeholder("spike_1"), graph.placeholder("mean")
    graph.output((mean,))
    changed = fx.GraphModule({}, graph)
    found = (
        unit if unit.moves is None else replace(unit, moves=replace(unit.moves, graph=changed))
        for unit in program.units
    )
    return program.evolve(units=tuple(found))


def all_at_once(each: Unit) -> Unit:
    """Says that what the block reads of itself comes from elsewhere."""
    return replace(each, sources=("x", "z"))


BROKEN: dict[str, tuple[str, Damage, str]] = {
    "every layer is scheduled": (
        "lateral",
        blocks(Block((0,), True)),
        r"the layers \[0, 1\] are scheduled as \[0\]",
    ),
    "every layer is scheduled once": (
        "lateral",
        blocks(Block((0,), True), Block((1,), False), Block((1,), False)),
        r"the layers \[0, 1\] are scheduled as \[0, 1, 1\]",
    ),
    "makers come first": (
        "two layers",
        blocks(Block((1,), False), Block((0,), False)),
        "out comes before mem, which it reads",
    ),
    "what feeds itself is recurrent": (
        "lateral",
        blocks(Block((0,), False), Block((1,), False)),
        "mem feeds itself, and is scheduled otherwise",
    ),
    "what does not is not": (
        "one layer",
        blocks(Block((0,), True)),
        "mem does not feed itself, and is scheduled otherwise",
    ),
    "a block is no larger than it need be": (
        "lateral",
        blocks(Block((0, 1), True)),
        "mem, readout does not feed itself, and is scheduled otherwise",
    ),
    "a unit for each block": (
        "two layers",
        lambda program: program.evolve(units=program.units[:1]),
        "the units are not those of the blocks",
    ),
    "no block without a unit": (
        "two layers",
        lambda program: program.evolve(units=()),
        "the units are not those of the blocks",
    ),
    "no whole step without a word": (
        "held back alone",
        lambda program: program.evolve(notes=()),
        "no word why every step is taken by itself",
    ),
    "no step by itself without a word": (
        "one layer",
        without(fold=None),
        "the steps of mem are taken one at a time, and no word says why",
    ),
    "a word is kept": (
        "one layer",
        without(alone="it rains"),
        "the steps of mem are computed at once, although it rains",
    ),
    "what takes turns is not ahead": (
        "two layers",
        without(in_turn=True),
        "the steps of mem are computed at once, although it takes turns",
    ),
    "a normalisation counts in order": (
        "normed twice",
        without(in_turn=False),
        "mem does not take turns, although the normalisation norm is used twice in a step",
    ),
    "what is moved is read a step later": (
        "held back",
        without(in_turn=False),
        "mem does not take turns, although each moves norm.running_mean",
    ),
    "statistics are moved": ("averaged", moved_by(7), r"0 units move the statistics \['mean'\]"),
    "what moves statistics is there": ("averaged", moved_by(0), "before what they are moved by is made"),
    "statistics are moved as in the step": ("averaged", standing_still, "has become"),
    "recurrence is taken step by step": (
        "lateral",
        unit(all_at_once),
        "what mem reads of itself is computed for many steps at once",
    ),
    "what is computed at once is in the graph": (
        "one layer",
        without(below_statics=("leak",)),
        "what is computed of mem for many steps at once takes",
    ),
    "all that can be is computed at once": (
        "one layer",
        without(values=("x",)),
        "what mem reads could be computed for many steps at once, and is not",
    ),
    "a unit carries what its layers do": (
        "lateral",
        unit(lambda each: replace(each, accruals=each.accruals[:-1])),
        "the unit of mem does not carry what its layers do",
    ),
    "neurons are stepped": ("one layer", without(step=None), "nothing of mem is taken step by step"),
    "a step takes its states": ("lateral", without(carries=("mem",)), "one step of mem takes"),
    "the first step is as it is": (
        "one layer",
        lambda program: program.evolve(first_apart=True),
        "wrong about whether a state begins in another shape",
    ),
}


@pytest.mark.parametrize("promise", BROKEN)
def test_a_broken_pass_is_caught_by_name(promise: str) -> None:
    name, damage, said = BROKEN[promise]
    require_caught(ScheduleTime, built(name), damage, said)


def test_calls_that_are_computed_at_once_are_caught_by_name() -> None:
    program = hand_built("two layers").evolve(kind="step")
    require_caught(ScheduleTime, program, without(in_turn=False), "mem does not take turns, although each is a call")
