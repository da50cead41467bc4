"""Local graphs of steps written by hand, and what a broken pass would record of them."""

from __future__ import annotations

import operator
from collections.abc import Callable
from dataclasses import replace
from typing import Any

import pytest
import torch
from support.broken import Damage, changed_by, changed_layer, edited, require_caught, results_changed
from support.hand_built import BATCH, NEURONS, before, hand_built
from torch import fx

from tracecompile.layers import Layer
from tracecompile.passes.insert_rate_inversion import InsertRateInversion, trainable_statics, with_truths_of_means
from tracecompile.passes.partition_layers import PartitionLayers
from tracecompile.program import StepProgram
from tracecompile.rules.measured.rule import MeasuredCore


def inverted(name: str, **settings: Any) -> StepProgram:
    return InsertRateInversion()(before(InsertRateInversion, hand_built(name, **settings)))


def test_derivatives_are_those_of_autograd() -> None:
    (layer,) = inverted("one layer").layers
    current, mem = (torch.randn(BATCH, NEURONS, requires_grad=True) for _ in range(2))
    leak = torch.tensor(0.9, requires_grad=True).expand(BATCH, NEURONS)
    assert layer.core is not None
    assert layer.response is not None
    assert layer.response.graph is not None
    (spikes,), (following,) = layer.core(current, mem, leak)
    nothing = [torch.zeros(()) for _ in layer.response.accruals]
    *_, derivatives = layer.response.graph(current.detach(), mem.detach(), leak.detach(), *nothing)
    assert 0 < spikes.sum() < spikes.numel()
    for result, value in (("spike", spikes), ("next:0", following)):
        for variable, leaf in (("fc", current), ("mem", mem), (layer.core_statics[0], leak)):
            (expected,) = torch.autograd.grad(value, leaf, torch.ones_like(value), retain_graph=True)
            row = layer.response.rows[result, variable]
            found = derivatives[row] if isinstance(row, int) else torch.full_like(expected, row)
            torch.testing.assert_close(found.expand_as(expected), expected)


def test_a_core_carries_the_tangents_of_its_states_and_the_responses_of_its_outputs() -> None:
    (layer,) = inverted("one layer").layers
    assert layer.response is not None
    assert [(a.role, a.pair) for a in layer.response.accruals] == [
        ("tangent", ("fc", "mem")),
        ("tangent", ("leak", "mem")),
        ("tangent", ("from:mem", "mem")),
        ("response", ("spike", "fc")),
        ("response", ("spike", "leak")),
        ("response", ("spike", "from:mem")),
    ]


def test_currents_that_act_alike_are_carried_once() -> None:
    (layer,) = inverted("two currents").layers
    assert layer.response is not None
    assert layer.currents == ("fc", "lateral")
    assert {pair for a in layer.response.accruals for pair in a.pair if pair in layer.currents} == {"fc"}


def test_a_normalisation_leaves_its_statistics_in_traces() -> None:
    program = inverted("normed")
    assert [(a.name, a.pair) for a in program.traces_kept] == [
        ("trace_x", ("x", "")),
        ("trace_norm_mean", ("norm", "mean")),
        ("trace_norm_variance", ("norm", "variance")),
    ]
    assert program.layers[0].norms == ("norm",)
    assert program.layers[0].local is not program.layers[0].synapse


def test_a_synapse_without_a_normalisation_is_its_own_local_graph() -> None:
    program = inverted("lateral")
    assert all(layer.local is layer.synapse for layer in program.layers)


def test_a_head_has_no_response() -> None:
    spiking, head = inverted("lateral").layers
    assert (spiking.response is None, head.response is None) == (False, True)


def test_the_analytic_rule_has_a_curve_and_carries_nothing() -> None:
    (layer,) = inverted("one layer", rule="analytic").layers
    assert layer.response is not None
    assert (layer.response.kind, layer.response.accruals, layer.response.graph) == ("subtract curve", (), None)
    assert set(layer.response.parts) == {"mean_outputs"}


def test_without_a_record_nothing_is_changed() -> None:
    program = before(InsertRateInversion, hand_built("normed", rule="bptt"))
    assert InsertRateInversion()(program) is program


def test_values_that_learn() -> None:
    found = trainable_statics(hand_built("two layers"))
    assert found >= {"leak", "leak_1", "fc"}
    assert not found & {"x", "mem", "out"}


def test_a_truth_is_read_off_the_share_of_the_steps() -> None:
    program = before(InsertRateInversion, hand_built("one layer"))
    synapse = program.layers[0].synapse
    assert with_truths_of_means(program, synapse) is synapse
    next(iter(synapse.graph.nodes)).meta["val"] = torch.zeros(BATCH, 3, dtype=torch.bool)
    found = with_truths_of_means(program, synapse)
    assert [node.target for node in found.graph.nodes][:2] == ["x", operator.gt]


def lines(change: Callable[[MeasuredCore, Layer], MeasuredCore]) -> Damage:
    """Returns what changes what the measured rule has made of the first layer."""

    def damage(layer: Layer) -> Layer:
        assert isinstance(layer.response, MeasuredCore)
        return replace(layer, response=change(layer.response, layer))

    return changed_by(0, damage)


def forgotten(core: MeasuredCore, layer: Layer) -> MeasuredCore:
    """Says that one response less is carried than there is in the graph."""
    return MeasuredCore(replace(core.lines, responses=core.lines.responses[1:]))


def never_carried(core: MeasuredCore, layer: Layer) -> MeasuredCore:
    """Leaves a response out of the graph, too: the answer of the spikes to the current."""
    names = [accrual.name for accrual in core.accruals]
    position = names.index(core.lines.responses[0].name)

    @results_changed
    def edit(results: Any, moved: Any, answers: Any, derivatives: Any) -> tuple[Any, ...]:
        return results, (*moved[:position], *moved[position + 1 :]), answers[1:], derivatives

    module = edited(core.graph, edit)
    module.graph.eliminate_dead_code()
    module.graph.erase_node(next(node for node in module.graph.nodes if node.name == names[position]))
    return MeasuredCore(replace(core.lines, graph=module, responses=core.lines.responses[1:]))


def not_returned(core: MeasuredCore, layer: Layer) -> MeasuredCore:
    """Loses the first thing that is moved on."""
    edit = results_changed(lambda results, moved, *others: (results, moved[1:], *others))
    return MeasuredCore(replace(core.lines, graph=edited(core.graph, edit)))


def of_nobody(core: MeasuredCore, layer: Layer) -> MeasuredCore:
    responses = tuple(replace(accrual, layer="elsewhere") for accrual in core.lines.responses)
    return MeasuredCore(replace(core.lines, responses=responses))


def turned_around(core: MeasuredCore, layer: Layer) -> MeasuredCore:
    return MeasuredCore(replace(core.lines, tangents=core.lines.responses, responses=core.lines.tangents))


def of_another_derivative(core: MeasuredCore, layer: Layer) -> MeasuredCore:
    """Names a derivative that the graph does not return."""
    return MeasuredCore(replace(core.lines, rows=core.rows | {("spike", "fc"): 99}))


def renamed(core: MeasuredCore, layer: Layer) -> MeasuredCore:
    """Calls a tangent what the model calls its state."""
    name = core.lines.tangents[0].name

    def edit(graph: fx.Graph) -> None:
        for node in graph.nodes:
            if node.name == name:
                node.name = "sub_1"

    tangents = (replace(core.lines.tangents[0], name="sub_1"), *core.lines.tangents[1:])
    return MeasuredCore(replace(core.lines, graph=edited(core.graph, edit), tangents=tangents))


def local_of_nothing(layer: Layer) -> Layer:
    return replace(layer, local=layer.synapse)


def local_without_result(layer: Layer) -> Layer:
    return replace(layer, local=edited(layer.synapse, results_changed(lambda *currents: ())))


BROKEN: dict[str, tuple[str, Damage, str]] = {
    "every layer has a local graph": ("one layer", changed_layer(0, local=None), "mem has no local graph"),
    "a local graph takes statistics": ("normed", changed_by(0, local_of_nothing), "the local graph of mem takes"),
    "a local graph makes the currents": (
        "one layer",
        changed_by(0, local_without_result),
        r"the local graph of mem does not lead to \['fc'\]",
    ),
    "every normalisation is recorded": (
        "normed",
        changed_layer(0, norms=()),
        r"mem records the statistics of \[\], not of \['norm'\]",
    ),
    "every core has a response": ("lateral", changed_layer(0, response=None), "mem has no response"),
    "only a core has one": (
        "lateral",
        lambda program: changed_layer(1, response=program.layers[0].response)(program),
        "readout has response",
    ),
    "what is carried is in the graph": ("one layer", lines(forgotten), "the core of mem in trace form takes"),
    "what is carried is moved on": ("one layer", lines(not_returned), "does not return what it has and carries"),
    "no derivative is forgotten": (
        "one layer",
        lines(never_carried),
        "mem does not carry how spike answers to fc",
    ),
    "a layer carries its own": ("one layer", lines(of_nobody), "does not carry tangents, then responses, of its own"),
    "tangents come first": ("one layer", lines(turned_around), "does not carry tangents, then responses"),
    "a derivative is returned": ("one layer", lines(of_another_derivative), "derivatives of mem are missing"),
    "no name means two things": ("one layer", lines(renamed), r"names that mean two things: \['sub_1'\]"),
    "statistics are carried": (
        "normed",
        lambda program: program.evolve(traces_kept=program.traces_kept[:-1]),
        "a mean and a variance for each normalisation",
    ),
    "traces are carried on": (
        "normed",
        lambda program: program.evolve(traces_kept=program.traces_kept[1:]),
        "does not carry the traces as they were",
    ),
}


@pytest.mark.parametrize("promise", BROKEN)
def test_a_broken_pass_is_caught_by_name(promise: str) -> None:
    name, damage, said = BROKEN[promise]
    require_caught(InsertRateInversion, hand_built(name), damage, said)


def test_a_pass_that_should_do_nothing_is_caught_by_name() -> None:
    program = hand_built("one layer", rule="bptt")
    require_caught(InsertRateInversion, program, lambda found: found.evolve(), "the rule records nothing")


def test_a_curve_that_carries_something_is_caught_by_name() -> None:
    def damage(layer: Layer) -> Layer:
        accrual = inverted("one layer").layers[0].response.accruals[0]  # type: ignore[union-attr]
        return replace(layer, response=replace(layer.response, accruals=(accrual,)))  # type: ignore[type-var]

    said = "nothing moves on what mem carries"
    require_caught(InsertRateInversion, hand_built("one layer", rule="analytic"), changed_by(0, damage), said)


def test_there_have_to_be_traces() -> None:
    program = before(PartitionLayers, hand_built("one layer"))
    assert InsertRateInversion().requires(PartitionLayers()(program)) == "there are no traces"
