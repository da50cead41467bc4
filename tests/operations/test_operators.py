"""Operators of Python's in all their forms, and derivatives under every spelling of an operation."""

from __future__ import annotations

import operator
from types import SimpleNamespace
from typing import Any

import pytest
import torch
from torch import Tensor, fx

from operations.examples import ARGUMENTS, calls, numbers, packets
from tracecompile.capture.tracing.functionalize import canonical, is_in_place, out_of_place
from tracecompile.operations import OPERATIONS, Fact, functions_of, operation_named
from tracecompile.rules.elementary import RULES
from tracecompile.rules.jacobian import differentiate

# Python's operators.


def test_one_spelling_for_all_idioms_of_an_operator() -> None:
    x, y = numbers()
    for entry in OPERATIONS:
        if entry.symbol and not entry.facts & Fact.INDEXES:
            given = ARGUMENTS.get(entry.name, lambda x, y: (x,))(x, y)
            wanted = calls(entry)(*given)
            for name in {entry.name, *entry.also, f"__{entry.symbol.strip('_')}__"} - {"__neg__"}:
                if hasattr(Tensor, name):
                    op, target, args, kwargs = canonical("call_method", name, given, {})
                    assert (op, target, kwargs) == ("call_function", getattr(operator, entry.symbol), {})
                    assert torch.equal(target(*args).nan_to_num(), wanted.nan_to_num())


@pytest.mark.parametrize("name", ["add", "sub", "mul", "truediv", "floordiv", "mod", "pow", "matmul"])
def test_reflected_operands_are_turned_round(name: str) -> None:
    function = getattr(operator, name)
    assert canonical("call_method", f"__r{name}__", (1, 2), {})[1:3] == (function, (2, 1))
    assert canonical("call_method", f"__{name}__", (1, 2), {})[1:3] == (function, (1, 2))


@pytest.mark.parametrize("name", "add sub mul truediv floordiv mod pow and or xor lshift rshift".split())
def test_an_augmented_assignment_writes_in_place(name: str) -> None:
    assert is_in_place(f"__i{name}__")
    function = getattr(operator, f"{name}_" if name in ("and", "or") else name)
    assert out_of_place(Tensor.add_, f"__i{name}__", (1, 2), {}) == ("call_function", function, (1, 2), {})
    assert not any(is_in_place(each) for each in ("__int__", "__index__", "__invert__", f"__{name}__", f"__r{name}__"))


# Derivatives by the names of the table.

FORMULAS: dict[str, Any] = {name: ARGUMENTS.get(name, lambda x, y: (x,)) for name in RULES}


def spelt() -> list[tuple[str, str, Any]]:
    found = []
    for name in RULES:
        entry = operation_named(name)
        assert entry.name == name
        found += [(name, "call_function", each) for each in dict.fromkeys([*functions_of(entry), *packets(entry)])]
        methods = [each for each in (entry.name, *entry.also) if hasattr(Tensor, each)]
        found += [(name, "call_method", each) for each in methods]
    return [each for each in found if not getattr(each[2], "__name__", "").endswith("_")]


@pytest.mark.parametrize(("name", "op", "target"), spelt(), ids=lambda each: getattr(each, "__name__", str(each)))
def test_a_formula_is_the_derivative_under_every_spelling(name: str, op: str, target: Any) -> None:
    x, y = numbers()
    values = {"x": x, "y": y.abs() + 0.5}
    graph = fx.Graph()
    nodes = {each: graph.placeholder(each) for each in values}
    if name == "where":
        values["mask"] = y > 0
        nodes["mask"] = graph.placeholder("mask")
        order = ("x", "mask", "y") if op == "call_method" else ("mask", "x", "y")
    else:
        order = ("x", "y") if len(FORMULAS[name](x, y)) == 2 else ("x",)
    node = graph.create_node(op, target, tuple(nodes[each] for each in order))
    for each, placeholder in nodes.items():
        placeholder.meta["val"] = values[each]
    leaves = {each: values[each].clone().requires_grad_() for each in ("x", "y")}
    given = [leaves.get(each, values[each]) for each in order]
    expected = getattr(given[0], target)(*given[1:]) if op == "call_method" else target(*given)
    node.meta["val"] = expected.detach()
    graph.output(((node,), ()))
    jacobian = differentiate(SimpleNamespace(), fx.GraphModule({}, graph), frozenset(["x", "y"]))  # type: ignore[arg-type]
    (outputs, _), slopes = jacobian.graph(*values.values())
    assert torch.equal(outputs[0], expected)
    for each, leaf in leaves.items():
        (wanted,) = torch.autograd.grad(expected.sum(), leaf, retain_graph=True, allow_unused=True)
        row = jacobian.rows.get((node.name, each), 0.0)
        found = slopes[row] if isinstance(row, int) else row
        assert torch.allclose(torch.as_tensor(found).double().expand(x.shape), x * 0 if wanted is None else wanted)
