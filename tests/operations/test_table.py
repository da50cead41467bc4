"""The table itself: every spelling leads to its entry, and an entry is all that an operation needs."""

from __future__ import annotations

import operator
from types import SimpleNamespace
from typing import Any

import pytest
import torch
from torch import Tensor, fx, nn

from operations.examples import ARGUMENTS, packets
from operations.modules import MODULES
from tracecompile.analysis.pointwise import acts_alone, is_comparison
from tracecompile.diagnostics.aloud import _is_hard
from tracecompile.operations import (
    OPERATIONS,
    UNKNOWN,
    Fact,
    Operation,
    described,
    functions_of,
    has,
    lookup,
    modules_with,
    names_of,
    operation_named,
    operation_of,
    symbol_named,
)
from tracecompile.rules.jacobian import differentiate

aten = torch.ops.aten


def node_of(op: str, target: Any, *args: Any) -> fx.Node:
    graph = fx.Graph()
    return graph.create_node(op, target, (graph.placeholder("x"), *args))


@pytest.mark.parametrize("entry", OPERATIONS, ids=lambda entry: entry.name)
def test_every_spelling_leads_to_its_entry(entry: Operation) -> None:
    functions = list(functions_of(entry))
    methods = [name for each in names_of(entry) for name in (each, f"{each}_") if hasattr(Tensor, name)]
    methods = [name for name in methods if (symbol := symbol_named(name)) is None or not symbol.reflected]
    overloads = [getattr(packet, name) for packet in packets(entry) for name in packet.overloads()]
    for function in [*functions, *packets(entry), *overloads]:
        assert operation_of(node_of("call_function", function)) is entry, function
    for method in methods:
        assert operation_of(node_of("call_method", method)) is entry, method
    for name in entry.properties:
        assert hasattr(Tensor, name)
        assert operation_of(node_of("call_function", getattr, name)) is entry
    for kind in entry.modules:
        extended = type("Extended", (kind,), {})
        for each in (kind, extended):
            assert operation_of(node_of("call_module", "layer"), each.__new__(each)) is entry
    assert functions or methods or overloads


@pytest.mark.parametrize("entry", OPERATIONS, ids=lambda entry: entry.name)
def test_no_name_is_claimed_that_torch_does_not_have(entry: Operation) -> None:
    places = (torch, nn.functional, Tensor, aten, operator)
    for name in (entry.name, *entry.also):
        assert any(hasattr(place, each) for place in places for each in (name, f"{name}_")), name
    assert all(hasattr(aten, name) for name in entry.aten)


def test_what_the_table_does_not_have_is_unknown() -> None:
    for op, target in (("call_function", torch.erfinv), ("call_method", "erfinv_"), ("call_function", print)):
        assert operation_of(node_of(op, target)) is UNKNOWN
    assert operation_of(node_of("call_function", aten.erfinv.default)) is UNKNOWN
    assert operation_of(node_of("call_module", "layer"), nn.Sequential()) is UNKNOWN
    assert operation_of(node_of("call_module", "detach")) is UNKNOWN  # a module's name says nothing
    assert operation_of(node_of("call_method", "__rsub__", 1)) is UNKNOWN  # the operands come the other way round


def test_functions_and_modules_that_share_a_name_with_torch_are_not_torch() -> None:
    def detach(x: Tensor) -> Tensor:
        return x

    class Linear(nn.Module):
        pass

    assert operation_of(node_of("call_function", detach)) is UNKNOWN
    assert operation_of(node_of("call_module", "layer"), Linear()) is UNKNOWN


def test_two_entries_cannot_claim_one_spelling() -> None:
    again = Operation(name="positive_part", also=("relu",), facts=Fact.ELEMENTWISE)
    with pytest.raises(ValueError, match="both relu and positive_part"):
        lookup.Index((*OPERATIONS, again))


def test_every_example_is_of_an_entry() -> None:
    assert not {name for name in ARGUMENTS if operation_named(name) is UNKNOWN}
    assert set(MODULES) <= {kind for entry in OPERATIONS for kind in entry.modules}


def test_a_function_of_the_compilers_own_says_itself_what_it_is() -> None:
    @described(Fact.LINEAR)
    def doubled(x: Tensor) -> Tensor:
        return 2 * x

    assert has(node_of("call_function", doubled), Fact.LINEAR)
    assert not has(node_of("call_function", doubled), Fact.ELEMENTWISE)


def test_modules_are_found_by_their_facts() -> None:
    assert nn.BatchNorm2d in modules_with(Fact.BATCH_STATISTICS)
    assert not {nn.GroupNorm, nn.InstanceNorm1d} & set(modules_with(Fact.BATCH_STATISTICS))


# An entry is all that it takes.


@pytest.fixture
def with_signbit(monkeypatch: pytest.MonkeyPatch) -> None:
    entry = Operation(name="signbit", facts=Fact.ELEMENTWISE | Fact.THRESHOLD | Fact.COMPARES)
    monkeypatch.setattr(lookup, "_index", lookup.Index((*OPERATIONS, entry)))


SPELLINGS = [("call_function", torch.signbit), ("call_method", "signbit"), ("call_function", aten.signbit.default)]


@pytest.mark.parametrize(("op", "target"), SPELLINGS, ids=["function", "method", "overload"])
def test_before_its_entry_an_operation_is_not_known(op: str, target: Any) -> None:
    assert not is_comparison(node_of(op, target))


@pytest.mark.usefixtures("with_signbit")
@pytest.mark.parametrize(("op", "target"), SPELLINGS, ids=["function", "method", "overload"])
def test_adding_an_operation_is_one_entry(op: str, target: Any) -> None:
    """Spike detection, cores, differentiation and what is said of hard thresholds ask the same table."""
    node = node_of(op, target)
    node.meta["val"] = torch.zeros(3, dtype=torch.bool)
    assert is_comparison(node)
    assert acts_alone(node)
    assert _is_hard(node)
    core = fx.GraphModule({}, node.graph)
    node.meta["val"] = torch.zeros(3)
    core.graph.output(((node,), ()))
    assert differentiate(SimpleNamespace(), core, frozenset(["x"])).rows == {}  # type: ignore[arg-type]
