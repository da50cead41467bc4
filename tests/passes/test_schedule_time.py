"""Blocks and units of steps written by hand, and what a broken pass would schedule."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import replace
from typing import Any

import pytest
import torch
from support.broken import Damage, require_caught
from support.hand_built import STEPS, before, hand_built

from tracecompile.errors import PassError
from tracecompile.layers import Block
from tracecompile.passes.schedule_time import ScheduleTime, changes_shape_at_first
from tracecompile.program import StepProgram
from tracecompile.units import Unit


def scheduled(name: str) -> StepProgram:
    return ScheduleTime()(before(ScheduleTime, hand_built(name)))


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


def test_the_calls_of_a_step_model_have_no_units() -> None:
    program = before(ScheduleTime, hand_built("lateral")).evolve(kind="step")
    found = ScheduleTime()(program)
    assert (found.units, found.notes) == ((), ())
    assert len(found.blocks) == 2


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
    "no unit without a word": (
        "two layers",
        lambda program: program.evolve(units=()),
        "no word why every step is taken by itself",
    ),
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
    require_caught(ScheduleTime, hand_built(name), damage, said)
