"""Traces of steps written by hand, and what a broken pass would carry of them."""

from __future__ import annotations

from dataclasses import replace
from typing import Any

import pytest
import torch
from support.broken import Damage, changed_layer, require_caught
from support.hand_built import Nodes, before, hand_built, neuron, program_of
from torch import fx

from tracecompile.errors import InvalidInput, PassError, UnsupportedOperation
from tracecompile.layers import Trace
from tracecompile.passes.insert_input_traces import InsertInputTraces, unused
from tracecompile.program import StepProgram


def traced(program: StepProgram) -> StepProgram:
    return InsertInputTraces()(before(InsertInputTraces, program))


def read_twice(graph: fx.Graph, nodes: Nodes) -> tuple[list[fx.Node], list[fx.Node]]:
    """Two layers of neurons side by side, on the same input."""
    left, mem = neuron(graph, graph.call_module("fc", (nodes["x"],)), nodes["mem"])
    right, mem_2 = neuron(graph, graph.call_module("fc", (nodes["x"],)), nodes["mem_2"])
    return [left, right], [mem, mem_2]


def own_trace(graph: fx.Graph, nodes: Nodes) -> tuple[list[fx.Node], list[fx.Node]]:
    """Neurons whose membrane is called what the trace of x would be."""
    spikes, mem = neuron(graph, graph.call_module("fc", (nodes["x"],)), nodes["trace_x"])
    return [spikes], [mem]


TWICE = {"mem": 4, "mem_2": 4}


def test_one_trace_for_each_source() -> None:
    found = traced(hand_built("lateral"))
    assert [(t.value, t.decay) for t in found.traces] == [("x", None), ("z", None), ("spike", None)]
    assert [(a.name, a.role, a.pair, a.like) for a in found.traces_kept] == [
        ("trace_x", "trace", ("x", ""), "x"),
        ("trace_z", "trace", ("z", ""), "z"),
        ("trace_spike", "trace", ("spike", ""), "spike"),
    ]


def test_two_readers_share_a_trace() -> None:
    assert traced(program_of(read_twice, TWICE)).traces == (Trace("x", None, ("mem", "mem_2")),)


def test_two_decays_are_two_traces() -> None:
    found = traced(program_of(read_twice, TWICE, decay={"mem": 0.9, "mem_2": 1e-5}))
    assert found.traces == (Trace("x", 0.9, ("mem",)), Trace("x", 1e-5, ("mem_2",)))
    assert [a.name for a in found.traces_kept] == ["trace_x_0_9", "trace_x_1e_05"]
    assert [layer.decay for layer in found.layers] == [0.9, 1e-5]


def test_a_trace_takes_no_name_of_the_models() -> None:
    assert [a.name for a in traced(program_of(own_trace, {"trace_x": 4})).traces_kept] == ["trace_x_"]
    assert unused("a", {"a", "a_"}) == "a__"


def test_without_a_record_nothing_is_changed() -> None:
    program = before(InsertInputTraces, hand_built("lateral", rule="bptt"))
    assert InsertInputTraces()(program) is program


def test_traces_need_layers() -> None:
    with pytest.raises(PassError, match="insert_input_traces cannot run: there are no layers"):
        InsertInputTraces()(hand_built("one layer"))


def test_the_decay_of_an_unknown_layer_is_refused() -> None:
    with pytest.raises(InvalidInput, match="no_such_layer"):
        traced(hand_built("one layer", decay={"no_such_layer": 0.9}))


def test_a_source_of_whole_numbers_is_refused() -> None:
    program = before(InsertInputTraces, hand_built("one layer"))
    x = next(iter(program.step.graph.nodes))
    x.meta["val"] = torch.zeros(5, 3, dtype=torch.long)
    with pytest.raises(UnsupportedOperation, match="whole numbers have no mean"):
        InsertInputTraces()(program)


def traces(*changed: Trace) -> Damage:
    """Returns what puts other traces in the place of those that there are, and carries what was carried."""
    return lambda program: program.evolve(traces=changed)


def kept(position: int, **changes: Any) -> Damage:
    """Returns what changes one trace as it is carried."""

    def damage(program: StepProgram) -> StepProgram:
        found = list(program.traces_kept)
        found[position] = replace(found[position], **changes)
        return program.evolve(traces_kept=tuple(found))

    return damage


X, Z, SPIKE = (Trace("x", None, ("mem",)), Trace("z", None, ("mem",)), Trace("spike", None, ("readout",)))

BROKEN: dict[str, tuple[Damage, str]] = {
    "every source has a trace": (traces(X, Z), "there is not one trace for each source"),
    "a trace has a source": (traces(X, Z, SPIKE, Trace("fc", None, ())), "there is not one trace for each source"),
    "one trace for each source": (traces(X, X, Z, SPIKE), "there is not one trace for each source"),
    "one trace for each decay": (traces(X, Z, replace(SPIKE, decay=0.5)), "there is not one trace for each source"),
    "a trace knows its readers": (traces(X, Z, replace(SPIKE, readers=("mem",))), "spike is not read by mem"),
    "a layer decays as was asked": (changed_layer(0, decay=0.5), r"decay otherwise than was asked for: \['mem'\]"),
    "every trace is carried": (
        lambda program: program.evolve(traces_kept=program.traces_kept[1:]),
        "the step does not carry each trace once",
    ),
    "a trace is carried as one": (kept(1, role="tangent"), "the step does not carry each trace once"),
    "a trace adds up its source": (kept(1, pair=("x", "")), "the step does not carry each trace once"),
    "a trace decays as it should": (kept(1, decay=0.5), "the step does not carry each trace once"),
    "no two traces have one name": (kept(1, name="trace_x"), r"names that mean two things: \['trace_x'"),
    "no trace has a name of the step": (kept(1, name="fc"), r"names that mean two things: \['fc'\]"),
}


@pytest.mark.parametrize("promise", BROKEN)
def test_a_broken_pass_is_caught_by_name(promise: str) -> None:
    require_caught(InsertInputTraces, hand_built("lateral"), *BROKEN[promise])


def test_a_pass_that_should_do_nothing_is_caught_by_name() -> None:
    program = hand_built("lateral", rule="bptt")
    require_caught(InsertInputTraces, program, lambda found: found.evolve(), "the rule records nothing")
