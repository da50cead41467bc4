"""Graphs as JSON: their nodes in order, what is known of each, and the modules that they call beside the model's."""

from __future__ import annotations

import builtins
from collections.abc import Collection, Mapping
from typing import Any

import torch
from torch import Tensor, fx, nn

from tracecompile.errors import InvalidInput
from tracecompile.printing.variables import VARIABLE, variable_of
from tracecompile.program import AHEAD
from tracecompile.saving.functions import check_attribute, check_method, named, written_name
from tracecompile.saving.values import Json, NodeName, Reader, Writer

KEPT = ("where", "draws", "acts_on_elements", "pass", "means", AHEAD)
"""What is kept of a node's ``meta`` as it is."""
DROPPED = ("val", "place", VARIABLE)
"""What is kept in another form, or not at all."""


def write_graph(writer: Writer, module: fx.GraphModule, root: nn.Module, apart: Collection[str]) -> Json:
    """Returns a graph as JSON.

    Args:
        writer: Of everything else.
        module: The graph.
        root: The model; what it has is named, not written.
        apart: Names that mean something of the programs' own, whatever the model has.
    """
    nodes = [_write_node(writer, node) for node in module.graph.nodes]
    targets = dict.fromkeys(str(n.target) for n in module.graph.nodes if n.op in ("call_module", "get_attr"))
    values = {target: _get(module, target) for target in targets}
    # A captured graph holds the modules of the copy that it was captured from.
    own = {name: v for name, v in values.items() if name in apart or type(v) is not type(_get(root, name))}
    return {
        "name": type(module).__name__ if module._get_name() == "GraphModule" else module._get_name(),
        "nodes": nodes,
        "own": {target: writer.write(value) for target, value in own.items()},
    }


def _write_node(writer: Writer, node: fx.Node) -> Json:
    target: Any = node.target
    if node.op == "call_function":
        target = written_name(target)
        if target is None:
            raise InvalidInput(
                f"The program calls {_qualified(node.target)}, which a saved folder cannot import.",
                "Keep the state_dict, and convert the model where it is loaded.",
                node.meta.get("where"),
            )
    unknown = set(node.meta) - {*KEPT, *DROPPED}
    assert not unknown, f"nodes hold {unknown}, of which nothing is written"
    known = {key: writer.write(node.meta[key]) for key in KEPT if node.meta.get(key) is not None}
    if (variable := variable_of(node)) is not None:
        known[VARIABLE] = variable
    if "val" in node.meta:
        known["val"] = _write_example(writer, node.meta["val"])
    return [
        node.name,
        node.op,
        target,
        _write_arguments(writer, node.args),
        _write_arguments(writer, node.kwargs),
        known,
    ]


def _qualified(function: Any) -> str:
    return f"{getattr(function, '__module__', '')}.{getattr(function, '__qualname__', function)}"


def _write_arguments(writer: Writer, given: Any) -> Json:
    def named_node(node: fx.Node) -> Any:
        return NodeName(node.name)

    return writer.write(fx.node.map_arg(given, named_node))


def _write_example(writer: Writer, value: Any) -> Json:
    """Returns what is asked of a value later: the shape and type of a tensor, all of anything else."""
    if isinstance(value, Tensor):
        device = {} if value.device.type == "cpu" else {"device": str(value.device)}
        return {"like": list(value.shape), "dtype": str(value.dtype).removeprefix("torch."), **device}
    if isinstance(value, (tuple, list)):
        return [_write_example(writer, item) for item in value]
    try:
        return writer.write(value)
    except InvalidInput:
        return None  # an object of the user's, of which no pass asks


def read_graph(reader: Reader, written: Json, root: nn.Module) -> fx.GraphModule:
    """Returns the graph.

    Raises:
        InvalidInput: It calls what no program may call, or names what the model does not have.
    """
    own = {target: reader.read(value) for target, value in written["own"].items()}
    graph = fx.Graph()
    made: dict[str, fx.Node] = {}
    for entry in written["nodes"]:
        node = _read_node(reader, graph, entry, made)
        made[entry[0]] = node
    targets = [str(node.target) for node in graph.nodes if node.op in ("call_module", "get_attr")]
    found = {target: own[target] if target in own else _get(root, target) for target in targets}
    for node in graph.nodes:
        if node.op in ("call_module", "get_attr"):
            kind = nn.Module if node.op == "call_module" else Tensor
            if not isinstance(found[str(node.target)], kind):
                raise InvalidInput(f"The program reads {node.target}, which is no {kind.__name__} of the model.")
    return fx.GraphModule(found, graph, str(written["name"]))


def _read_node(reader: Reader, graph: fx.Graph, entry: Json, made: Mapping[str, fx.Node]) -> fx.Node:
    name, op, target, args, kwargs, known = entry
    given = _read_arguments(reader, args, made)
    if op == "call_function":
        target = named(target)
        if target is builtins.getattr:
            check_attribute(given[1])
    elif op == "call_method":
        target = check_method(target)
    named_ones = _read_arguments(reader, kwargs, made)
    if target in (max, min) and "key" in named_ones:
        raise InvalidInput(
            f"The program calls {target.__name__} with a function, which no program of this package does."
        )
    if not all(isinstance(word, str) and word.isidentifier() for word in (name, *named_ones)):
        raise InvalidInput(f"The program calls a value {name!r}, which is no name.")
    node = graph.create_node(op, target, given, named_ones, name=name)
    node.name = name
    for key, value in known.items():
        node.meta[key] = _read_example(reader, value) if key == "val" else reader.read(value)
    node.meta.setdefault("where", None)
    return node


def _read_arguments(reader: Reader, written: Json, made: Mapping[str, fx.Node]) -> Any:
    def found(leaf: Any) -> Any:
        return made[leaf.name] if isinstance(leaf, NodeName) else leaf

    return fx.node.map_aggregate(reader.read(written), found)


def _read_example(reader: Reader, written: Json) -> Any:
    if isinstance(written, list):
        return tuple(_read_example(reader, item) for item in written)
    if isinstance(written, dict) and "like" in written:
        dtype = reader.read({"torch": written["dtype"]})
        return torch.zeros((), dtype=dtype).expand(written["like"])
    return reader.read(written)


def _get(owner: Any, target: str) -> Any:
    for part in target.split("."):
        owner = getattr(owner, part, None)
    return owner
