"""Code of steps written by hand, and what a broken pass would emit."""

from __future__ import annotations

import operator
from collections.abc import Callable
from dataclasses import replace
from typing import Any

import pytest
import torch
from support.broken import Damage, edited, numbers_changed, require_caught, results_changed
from support.hand_built import STEPS, before, hand_built
from torch import Tensor, fx
from torch.utils import _pytree as pytree

from tracecompile.emitted import Emitted
from tracecompile.errors import PassError
from tracecompile.layers import Accrual
from tracecompile.passes.emit_module import EmitModule
from tracecompile.passes.emitted import accruals_carried
from tracecompile.program import StepProgram
from tracecompile.rules.accumulation import accumulated


def emitted_of(name: str, **settings: Any) -> tuple[StepProgram, Emitted]:
    program = EmitModule()(before(EmitModule, hand_built(name, **settings)))
    assert program.emitted is not None
    return program, program.emitted


def arguments_of(program: StepProgram) -> list[Tensor]:
    """Draws what a step takes, for a batch of another size, and computes its static values."""
    assert program.statics is not None
    values = [node.meta["val"] for node in program.step.graph.nodes if node.op == "placeholder"]
    statics = program.statics.graph(*(program.resolve(path) for path in program.statics.attributes))
    return [*(2 * torch.randn(7, *value.shape[1:]) for value in values), *statics]


@pytest.mark.parametrize("rule", ["measured", "analytic", "bptt"])
@pytest.mark.parametrize("name", STEPS)
def test_both_steps_compute_what_the_captured_one_does_bit_for_bit(name: str, rule: str) -> None:
    program, emitted = emitted_of(name, rule=rule)
    given = arguments_of(program)
    nothing = [torch.zeros(()) for _ in emitted.accruals]
    with torch.no_grad():
        expected = pytree.tree_leaves(program.step(*given[: 1 + len(program.carries)]))
        plain = pytree.tree_leaves(emitted.plain(*given))
        traced = pytree.tree_leaves(emitted.traced(*given, *nothing)[:2])
    assert len(expected) == len(plain) == len(traced)
    assert all(torch.equal(*pair) for pair in zip(expected, plain, strict=True))
    assert all(torch.equal(*pair) for pair in zip(expected, traced, strict=True))


@pytest.mark.parametrize("decay", [None, 0.5])
def test_a_trace_adds_up_its_source(decay: float | None) -> None:
    program, emitted = emitted_of("lateral", decay=decay)
    given = arguments_of(program)
    before = [torch.full((), 2.0) for _ in emitted.accruals]
    with torch.no_grad():
        _, _, moved, read, _ = emitted.traced(*given, *before)
    assert [accrual.name for accrual in emitted.accruals[:3]] == ["trace_x", "trace_z", "trace_spike"]
    assert torch.equal(read[0], given[0])
    assert torch.equal(read[1], given[2])
    for total, value in zip(moved, read, strict=False):
        torch.testing.assert_close(total, 2.0 * (decay or 1.0) + value)


def test_a_rule_that_records_nothing_carries_nothing() -> None:
    program, emitted = emitted_of("lateral", rule="bptt")
    assert (emitted.accruals, accruals_carried(program)) == ((), ())
    assert [node.target for node in emitted.traced.graph.nodes] == [node.target for node in emitted.plain.graph.nodes]


@pytest.mark.parametrize("name", STEPS)
def test_what_was_there_stays_as_it_is(name: str) -> None:
    program = before(EmitModule, hand_built(name))
    found = EmitModule()(program)
    assert (found.step, found.prologue, found.layers, found.units) == (
        *(program.step, program.prologue, program.layers, program.units),
    )


def test_emitting_needs_a_schedule() -> None:
    with pytest.raises(PassError, match="emit_module cannot run: nothing is scheduled"):
        EmitModule()(hand_built("one layer"))


def emitted(change: Callable[[Emitted], Emitted]) -> Damage:
    """Returns what changes the emitted code."""

    def damage(program: StepProgram) -> StepProgram:
        assert program.emitted is not None
        return program.evolve(emitted=change(program.emitted))

    return damage


def code(name: str, edit: Callable[[fx.Graph], None]) -> Damage:
    """Returns what edits one of the emitted graphs."""
    return emitted(lambda found: replace(found, **{name: edited(getattr(found, name), edit)}))


def one_more(graph: fx.Graph) -> None:
    """Takes what nobody hands in."""
    with graph.inserting_before(next(iter(graph.nodes))):
        graph.placeholder("more")


without_states = results_changed(lambda outputs, states, *others: (outputs, (), *others))
turned_around = results_changed(lambda *groups: tuple(group[::-1] for group in groups))
unread = results_changed(lambda *others: (*others[:3], others[3][1:], others[4]))
not_added = results_changed(lambda *others: (*others[:2], (others[2][0].args[0], *others[2][1:]), *others[3:]))
"""Hands a trace on as it came."""
spikes_for_the_head = results_changed(lambda outputs, *others: (tuple(outputs[0].all_input_nodes), *others))
"""Returns the spikes of the layer in the place of the product that the head makes of them."""


@results_changed
def another_source(outputs: Any, states: Any, moved: Any, read: Any, of_layers: Any) -> tuple[Any, ...]:
    """Adds the lateral input up, and says so, in the trace of the input."""
    x, z, *others = read
    moved[0].replace_input_with(x, z)
    return outputs, states, moved, (z, z, *others), of_layers


def other_statistic(graph: fx.Graph) -> None:
    """Reads the variance for the mean."""
    for node in graph.nodes:
        if node.target is operator.getitem and node.args[1:] == (0,) and accumulated in {u.target for u in node.users}:
            node.args = (node.args[0], 1)


def fewer(found: Emitted) -> Emitted:
    return replace(found, accruals=found.accruals[:-1])


def another(found: Emitted) -> Emitted:
    return replace(found, accruals=(*found.accruals, Accrual("more", "trace", "", ("x", ""), "x")))


def with_attribute(found: Emitted) -> Emitted:
    """Reads an attribute of the model where nobody sees that it is replaced."""
    graph = fx.Graph()
    graph.output(((graph.placeholder("x"),), (), (graph.get_attr("leak"),)))
    owner = fx.GraphModule({"leak": torch.nn.Parameter(torch.zeros(()))}, graph)
    return replace(found, prologue=owner)


BROKEN: dict[str, tuple[str, Damage, str]] = {
    "something is emitted": ("one layer", lambda program: program.evolve(emitted=None), "nothing is emitted"),
    "the step takes what the step takes": (
        "one layer",
        code("plain", one_more),
        r"the emitted step takes \['more', 'x', 'mem', 'leak'\], not \['x', 'mem', 'leak'\]",
    ),
    "the step returns what the step returns": (
        "one layer",
        code("plain", without_states),
        "the emitted step returns other things than the captured one",
    ),
    "it computes what the step does": (
        "one layer",
        code("plain", numbers_changed(1.0, 2.0)),
        "the emitted step computes something else than the captured one",
    ),
    "results keep their order": (
        "two layers",
        code("plain", turned_around),
        "the emitted step computes something else than the captured one",
    ),
    "all that layers carry is carried": ("one layer", emitted(fewer), r"the emitted step carries \['trace_x'.*, not"),
    "nothing else is carried": ("one layer", emitted(another), r"the emitted step carries .*'more'\], not"),
    "in trace form, too, it takes what the step takes": (
        "one layer",
        code("traced", one_more),
        r"the emitted step in trace form takes \['more', 'x'",
    ),
    "in trace form, too, it returns what the step returns": (
        "one layer",
        code("traced", without_states),
        "the emitted step in trace form returns other things than it says",
    ),
    "every trace is read": ("lateral", code("traced", unread), "returns other things than it says"),
    "a head reads what it should": (
        "lateral",
        code("traced", spikes_for_the_head),
        "in trace form computes something else than the captured one",
    ),
    "a trace reads its source": (
        "lateral",
        code("traced", another_source),
        "in trace form computes something else than the captured one: x has become z",
    ),
    "a trace adds up what it reads": ("lateral", code("traced", not_added), "trace_x does not add up x"),
    "a trace decays": (
        "one layer",
        code("traced", numbers_changed(0.5, 0.25)),
        "trace_x does not add up x",
    ),
    "a trace reads its statistic": (
        "normed",
        code("traced", other_statistic),
        "trace_norm_mean does not read the mean of norm",
    ),
    "a port for each result": (
        "one layer",
        lambda program: program.evolve(ports=program.ports[1:]),
        "there is not one port for each output and state",
    ),
    "the prologue takes the arguments": (
        "one layer",
        code("prologue", one_more),
        r"the emitted prologue does not take \[\]",
    ),
    "the epilogue takes what was collected": (
        "one layer",
        code("epilogue", one_more),
        r"the emitted epilogue does not take \[\]",
    ),
    "no attribute is read past the arguments": (
        "one layer",
        emitted(with_attribute),
        "the emitted prologue reads an attribute",
    ),
}


@pytest.mark.parametrize("promise", BROKEN)
def test_a_broken_pass_is_caught_by_name(promise: str) -> None:
    name, damage, said = BROKEN[promise]
    settings = {"decay": 0.5} if promise == "a trace decays" else {}
    require_caught(EmitModule, hand_built(name, **settings), damage, said)
