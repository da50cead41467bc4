"""An operation is treated alike under all its spellings, by each part of the compiler that has to know it."""

from __future__ import annotations

from collections.abc import Callable
from types import SimpleNamespace
from typing import Any

import pytest
import torch
from forms.cells import Cell
from support.oracle import spike
from torch import Tensor, fx, nn
from torch.nn import functional as F

import tracecompile
from tracecompile.analysis.linearity import nonlinear_operations
from tracecompile.analysis.prologue import without_side_effects
from tracecompile.analysis.spikes import spike_nodes
from tracecompile.analysis.statics import static_nodes

State = tuple[Tensor, Tensor]


def step_of(build: Callable[[Any], Any], cell: type[Cell] = Cell) -> Any:
    """Returns the captured program of a cell whose membrane goes through an operation."""

    class Built(cell):  # type: ignore[misc, valid-type]
        def step(self, current: Tensor, v: Tensor) -> State:
            v = 0.9 * v + current
            z = spike(v - 0.8)
            return z, v - 0.8 * z * build(v)

    return tracecompile.convert(Built(), torch.randn(6, 2, 6), backend="eager").program


CASTS: dict[str, Callable[[Tensor], Tensor]] = {
    "float": lambda v: (v > 0.3).float(),
    "to": lambda v: (v > 0.3).to(torch.float32),
    "by long": lambda v: (v > 0.3).long().float(),
    "by int and to": lambda v: (v > 0.3).int().to(torch.float32),
    "not equal": lambda v: torch.not_equal(v.round(), 0.0).float(),
    "aten": lambda v: torch.ops.aten.gt(v, 0.3).float(),
}


@pytest.mark.parametrize("name", CASTS)
def test_a_cast_comparison_is_a_spike_by_whatever_cast(name: str) -> None:
    program = step_of(CASTS[name])
    assert len(spike_nodes(program)) == 2  # beside that of the surrogate


def graph_of(*nodes: tuple[str, Any, tuple[Any, ...]], sources: int = 1) -> fx.Graph:
    graph = fx.Graph()
    made: list[fx.Node] = [graph.placeholder(f"x{each}") for each in range(sources)]
    for op, target, args in nodes:
        places = fx.map_arg(args, lambda each: each)
        made.append(
            graph.create_node(op, target, tuple(made[int(a[1:])] if str(a).startswith("%") else a for a in places))
        )
    graph.output(made[-1])
    return graph


def nonlinear(op: str, target: Any, *args: Any, modules: dict[str, nn.Module] | None = None) -> bool:
    sources = 2 if "%1" in args else 1
    layer: Any = SimpleNamespace(
        synapse=SimpleNamespace(graph=graph_of((op, target, args), sources=sources)), synapse_statics=()
    )
    program: Any = SimpleNamespace(resolve=(modules or {}).__getitem__)
    return bool(nonlinear_operations(program, layer))


LINEAR: dict[str, tuple[Any, ...]] = {
    "subtract": ("call_function", torch.subtract, "%0", 1.0),
    "moveaxis": ("call_method", "moveaxis", "%0", 0, 1),
    "ravel": ("call_method", "ravel", "%0"),
    "overload": ("call_function", torch.ops.aten.add.Tensor, "%0", 1.0),
    "zeros of its type": ("call_method", "new_zeros", "%0", 3),
    "dropout": ("call_function", F.dropout, "%0", 0.5, False),
    "division by a number": ("call_function", torch.true_divide, "%0", 2.0),
    "half a product": ("call_function", F.linear, "%0", "weight"),
}
NOT_LINEAR: dict[str, tuple[Any, ...]] = {
    "square": ("call_method", "mul", "%0", "%0"),
    "product of two": ("call_method", "mul", "%0", "%1"),
    "weights that change": ("call_function", F.linear, "%0", "%1"),
    "division by it": ("call_function", torch.true_divide, 2.0, "%0"),
    "normalised": ("call_function", F.instance_norm, "%0"),
}


@pytest.mark.parametrize("name", [*LINEAR, *NOT_LINEAR])
def test_what_is_linear_is_so_by_any_name(name: str) -> None:
    assert nonlinear(*{**LINEAR, **NOT_LINEAR}[name]) == (name in NOT_LINEAR)


@pytest.mark.parametrize(
    ("module", "linear"),
    [
        (nn.ConstantPad1d(1, 0.5), True), (nn.ReplicationPad1d(1), True), (nn.Dropout2d(0.2), True),
        (nn.InstanceNorm1d(3, track_running_stats=True).eval(), True), (nn.InstanceNorm1d(3).eval(), False),
        (nn.BatchNorm1d(3).eval(), True), (nn.BatchNorm1d(3), False),
        (nn.BatchNorm1d(3, track_running_stats=False).eval(), False), (nn.MaxPool1d(2), False),
    ],
)  # fmt: skip
def test_modules_are_linear_as_their_functions_are(module: nn.Module, linear: bool) -> None:
    assert nonlinear("call_module", "layer", "%0", modules={"layer": module}) != linear


def test_a_randomised_activation_is_never_static() -> None:
    graph = graph_of(("call_module", "layer", ("%0",)))
    program: Any = SimpleNamespace(
        step=SimpleNamespace(graph=graph), invariants=("x0",), resolve={"layer": nn.RReLU()}.__getitem__
    )
    assert [node.name for node in static_nodes(program)] == ["x0"]


@pytest.mark.parametrize(
    ("asked", "kept"),
    [
        (("call_method", "new_zeros", ("%1", 3)), False), (("call_function", torch.rand_like, ("%1",)), False),
        (("call_function", getattr, ("%1", "shape")), False), (("call_function", getattr, ("%1", "T")), True),
        (("call_method", "t", ("%1",)), True),
    ],
)  # fmt: skip
def test_only_a_question_for_the_shape_spares_a_dropout(asked: Any, kept: bool) -> None:
    graph = graph_of(("call_function", F.feature_alpha_dropout, ("%0",)), asked)
    program: Any = SimpleNamespace(
        prologue=SimpleNamespace(graph=graph),
        step=SimpleNamespace(graph=graph),
        graph_module=lambda graph, name: fx.GraphModule({}, graph),
    )
    for node in graph.nodes:
        node.meta["ahead"] = True
    left = [node.target for node in without_side_effects(program).graph.nodes]
    assert (F.feature_alpha_dropout in left) == kept
