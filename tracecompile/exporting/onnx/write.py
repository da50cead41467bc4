"""Parts of a network as ONNX models, by torch's own exporter."""

from __future__ import annotations

import logging
import warnings
from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from typing import Any

import torch
from torch import Tensor, fx

from tracecompile.errors import InvalidInput, SourceLine, UnsupportedOperation
from tracecompile.exporting.parts import Part
from tracecompile.exporting.program import BATCHES, STEPS
from tracecompile.exporting.trajectory import Run
from tracecompile.kinds import first_line

LOGGERS = ("torch.onnx", "onnxscript", "onnx_ir")
Proto = Any
"""An onnx.ModelProto."""


def require_onnx() -> None:
    """Refuses to go on without what an export needs.

    Raises:
        InvalidInput: A package is not installed; names it.
    """
    for name in ("onnx", "onnxscript", "onnxruntime"):
        try:
            __import__(name)
        except ImportError as error:
            raise InvalidInput(
                f"Writing and checking an ONNX model needs the package {name}.",
                "Install it: pip install 'tracecompile[onnx]'.",
            ) from error


def write_part(part: Part, few: Run, many: Run) -> Proto:
    """Returns a part as an ONNX model, whose axes are free where two calls of other sizes differ.

    Args:
        part: The part.
        few, many: Its arguments and results in two calls, no size of which is 1 where it varies.

    Raises:
        UnsupportedOperation: An operation has no form in ONNX; names the user's line.
    """
    varying = [_varying(one, other) for one, other in zip(few[0], many[0], strict=True)]
    with _quiet():
        try:
            program = _exported(part.module, few[0], varying)
        except Exception as fault:
            raise _explained(part, few[0], varying, fault) from fault
    model = program.model_proto
    _name_axes(model, part, few, many)
    _name_values(model, part)
    return model


def _varying(one: Tensor, other: Tensor) -> dict[int, Any]:
    pairs = enumerate(zip(one.shape, other.shape, strict=True))
    return {axis: torch.export.Dim.DYNAMIC for axis, (few, many) in pairs if few != many}


def _exported(module: fx.GraphModule, given: Sequence[Tensor], varying: Sequence[Any]) -> Any:
    with torch.no_grad():
        return torch.onnx.export(
            module,
            tuple(given),
            dynamo=True,
            dynamic_shapes=tuple(varying),
            verbose=False,
            optimize=True,
        )


def _name_values(model: Proto, part: Part) -> None:
    """Gives arguments and results their names; whatever else has one of them gets another."""
    from onnx import helper

    for node in list(model.graph.node):
        if list(node.input) == list(node.output):  # the exporter hands on an argument under its own name
            model.graph.node.remove(node)
    wanted = {value.name for value in (*part.takes, *part.returns)}
    arguments = {each.name: value.name for each, value in zip(model.graph.input, part.takes, strict=True)}

    def renamed(name: str) -> str:
        return arguments.get(name) or (f"{name}.inner" if name in wanted else name)

    for node in model.graph.node:
        node.input[:] = [renamed(name) for name in node.input]
        node.output[:] = [renamed(name) for name in node.output]
    for known in (*model.graph.value_info, *model.graph.initializer, *model.graph.input):
        known.name = renamed(known.name)
    for value, result in zip(part.returns, model.graph.output, strict=True):
        old, result.name = renamed(result.name), value.name
        model.graph.node.append(helper.make_node("Identity", [old], [value.name], name=f"result {value.name}"))


def _name_axes(model: Proto, part: Part, few: Run, many: Run) -> None:
    """Calls free axes what they are."""
    meanings = {BATCHES: "batch", (STEPS, STEPS + 2): "time"}
    found: dict[str, str] = {}
    pairs = zip((*model.graph.input, *model.graph.output), (*few[0], *few[1]), (*many[0], *many[1]), strict=True)
    for value, one, other in pairs:
        for axis, dimension in enumerate(value.type.tensor_type.shape.dim):
            if dimension.dim_param:
                found.setdefault(dimension.dim_param, meanings.get((one.shape[axis], other.shape[axis]), ""))
    for value in (*model.graph.input, *model.graph.output, *model.graph.value_info):
        for dimension in value.type.tensor_type.shape.dim:
            if found.get(dimension.dim_param):
                dimension.dim_param = found[dimension.dim_param]


@contextmanager
def _quiet() -> Iterator[None]:
    """Lets the exporter say nothing: its advice is for those who call it."""
    levels = {name: logging.getLogger(name).level for name in LOGGERS}
    with warnings.catch_warnings():
        warnings.simplefilter("ignore")
        try:
            for name in LOGGERS:
                logging.getLogger(name).setLevel(logging.ERROR)
            yield
        finally:
            for name, level in levels.items():
                logging.getLogger(name).setLevel(level)


def _explained(part: Part, given: Sequence[Tensor], varying: Sequence[Any], fault: Exception) -> UnsupportedOperation:
    """Returns the error of the first node up to which a part cannot be written."""
    nodes = [node for node in part.module.graph.nodes if node.op not in ("placeholder", "output")]
    first, last = 0, len(nodes) - 1
    while first < last:
        middle = (first + last) // 2
        if _fails(part.module, nodes[middle], given, varying):
            last = middle
        else:
            first = middle + 1
    node = nodes[last] if nodes else None
    where: SourceLine | None = None if node is None else node.meta.get("where")
    name = "" if node is None else f" ({getattr(node.target, '__name__', node.target)})"
    return UnsupportedOperation(
        f"The {part.name} of the network has no form in ONNX{name}: {first_line(fault)}.",
        "Write that line with operations that torch.onnx knows.",
        where,
    )


def _fails(module: fx.GraphModule, upto: fx.Node, given: Sequence[Tensor], varying: Sequence[Any]) -> bool:
    """Tells whether a part cannot be written as far as a node."""
    graph, values = fx.Graph(), dict[fx.Node, fx.Node]()
    for node in module.graph.nodes:
        values[node] = graph.node_copy(node, values.__getitem__)
        if node is upto:
            break
    for node in module.graph.nodes:
        if node.op == "placeholder" and node not in values:
            values[node] = graph.placeholder(node.name)
    found = values[upto]
    graph.output((found,))
    try:
        _exported(fx.GraphModule(module, graph), given, varying)
    except Exception:
        return True
    return False
