"""Writes nodes: ties values to them and gives each its place in the user's code."""

from __future__ import annotations

import operator
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from typing import Any

import numpy
import torch
from torch import fx, nn
from torch.utils import _pytree as pytree

from tracecompile.capture.copying.copies import tensor_attributes
from tracecompile.capture.tracing.counted import CountedTensors
from tracecompile.capture.tracing.draws import TorchDraws
from tracecompile.capture.tracing.memory import Memory
from tracecompile.capture.tracing.names import valid_name
from tracecompile.capture.tracing.source import current_place
from tracecompile.capture.tracing.step_numbers import StepNumber
from tracecompile.capture.tracing.tape import Tape
from tracecompile.capture.tracing.trace_errors import TooManySteps
from tracecompile.capture.tracing.values import TracedFloat, TracedInt, plain, snapshot
from tracecompile.errors import ConversionError, UnsupportedOperation

DTYPES: dict[type, torch.dtype] = {bool: torch.bool, int: torch.int64, float: torch.float64}
"""What torch takes for a dtype although it is a Python type, which no graph can hold."""


class NodeWriter(fx.Tracer):
    """Knows the node of every tensor of one trace and appends new ones; what to record is its subclasses' matter."""

    def __init__(self, model: nn.Module, visits: int | None = None) -> None:
        super().__init__()
        self.root = model
        self.graph = fx.Graph()
        self.tape = Tape(self.graph)
        self.memory = Memory(self)
        self.counted = CountedTensors()
        self.paths = {module: path for path, module in model.named_modules()}
        self.parameters = {id(value): name for name, value in model.named_parameters(remove_duplicate=False)}
        self.kept = [value for _, value in tensor_attributes(model)]
        self.attributes = {id(value): name for name, value in tensor_attributes(model)}
        self.modes = {path: module.training for path, module in model.named_modules()}
        self.running = [""]
        self.paused = 0
        self.visits = visits
        self.seen: dict[Any, int] = {}
        self.draws = TorchDraws()

    def really(self, function: Callable[..., Any], args: tuple[Any, ...], kwargs: dict[str, Any]) -> Any:
        """Runs a function without recording it."""
        args, kwargs = pytree.tree_map(plain, (args, kwargs))
        return function(*args, **kwargs)

    @contextmanager
    def pause(self) -> Iterator[None]:
        """Records nothing while the context is open."""
        self.paused += 1
        try:
            yield
        finally:
            self.paused -= 1

    def write_down(self, op: str, target: Any, args: tuple[Any, ...], kwargs: dict[str, Any], value: Any) -> Any:
        """Adds a node and ties its value, or each of its values, to it."""
        node = self.add_node(op, target, args, kwargs, value)
        if not torch.is_grad_enabled() and any(
            isinstance(leaf, torch.Tensor) for leaf in pytree.tree_leaves((args, kwargs))
        ):
            return self.bind_result(node, value, detached=True)
        return self.bind_result(node, value)

    def bind_result(self, node: fx.Node, value: Any, detached: bool = False) -> Any:
        """Ties a value to its node, elements of a tuple to nodes that pick them."""
        if isinstance(value, torch.Tensor):
            value = value.view_as(value) if self.memory.knows(value) or id(value) in self.attributes else value
            if detached and value.is_floating_point():
                value = value.detach()
                node = self.add_node("call_method", "detach", (node,), {}, value)
            self.memory.bind(value, node)
            return value
        if isinstance(value, (tuple, list)):
            picked = [
                self.bind_result(
                    self.add_node("call_function", operator.getitem, (node, position), {}, item), item, detached
                )
                for position, item in enumerate(value)
            ]
            return type(value)(picked)
        return value

    def add_node(self, op: str, target: Any, args: tuple[Any, ...], kwargs: dict[str, Any], value: Any) -> fx.Node:
        """Appends one node with its value, its place and the user's line."""
        place, where = current_place(self.running[-1])
        node = self.graph.create_node(op, target, self.lowered(args), self.lowered(kwargs))
        node.meta.update(val=snapshot(value), where=where, place=place, draws=self.draws.moved())
        self.count_visit(node)
        return node

    def count_visit(self, node: fx.Node) -> None:
        """Stops a trace that runs far longer than its short example can."""
        if self.visits is None:
            return
        key = (node.meta["place"], str(node.target))
        self.seen[key] = self.seen.get(key, 0) + 1
        if self.seen[key] > self.visits:
            raise TooManySteps

    def create_arg(self, a: Any) -> Any:
        """Lowers a value to what a node may hold."""
        if isinstance(a, fx.Node):
            return a
        if isinstance(a, torch.Tensor):
            return self.node_of(a)
        if isinstance(a, (TracedInt, TracedFloat)):
            return a.node
        if isinstance(a, StepNumber):
            return int(a)
        if isinstance(a, type) and a in DTYPES:
            return DTYPES[a]
        if isinstance(a, torch.Size):
            return tuple(self.create_arg(length) for length in a)
        if isinstance(a, numpy.generic):
            # To torch a number of numpy's is a number, whatever its precision; generated code knows no numpy.
            return super().create_arg(a.item())
        if isinstance(a, numpy.ndarray):
            return self.node_of(torch.from_numpy(a.copy()))
        if isinstance(a, torch.Generator):
            raise self.refusal(
                UnsupportedOperation,
                "Random numbers come from a generator object, whose state nothing outside the model can set.",
                "Leave generator= out, and seed with torch.manual_seed; or draw before the model and hand it in.",
            )
        return super().create_arg(a)

    def lowered(self, arguments: Any) -> Any:
        """Lowers arguments to what a node may hold, and refuses what none may."""
        try:
            return self.create_arg(arguments)
        except NotImplementedError as error:
            raise self.refusal(
                UnsupportedOperation,
                f"An operation takes a value that no graph can hold: {error}.",
                "Pass tensors and Python numbers to torch functions.",
            ) from error

    def node_of(self, tensor: torch.Tensor) -> fx.Node:
        """Returns the node of a tensor; parameters and the model's constants get theirs at first use."""
        if self.memory.knows(tensor):
            return self.memory.node(tensor)
        name = self.parameters.get(id(tensor)) or self.attributes.get(id(tensor))
        known = self.memory.same_memory(tensor) if name is None else None
        if known is not None:
            # Made where no torch function is seen, such as ``Variable(x)``: the same numbers under another name.
            node = self.add_node("call_method", "detach", (known,), {}, tensor)
            self.memory.bind(tensor, node)
            return node
        if name is None or "[" in name:
            name = self.constant_target(tensor, name)
        node = self.graph.create_node("get_attr", name)
        node.meta.update(val=snapshot(tensor), where=None, place=None)
        self.memory.bind(tensor, node)
        return node

    def constant_target(self, tensor: torch.Tensor, name: str | None) -> str:
        """Keeps a tensor that no attribute of the model names."""
        if tensor.grad_fn is not None:
            raise self.refusal(
                UnsupportedOperation,
                "A tensor was computed where the conversion cannot follow: in compiled code, or outside the model.",
                "Compute it with torch functions inside the model's forward.",
            )
        if name is None:
            known = (key for key, value in self.tape.constants.items() if same_constant(value, tensor))
            name = next(known, f"captured_{len(self.tape.constants)}")
        else:
            name = f"captured_{valid_name(name)}"
        self.tape.constants.setdefault(name, tensor.detach().clone())
        return name

    def may_require_grad(self, tensor: torch.Tensor, wanted: bool) -> bool:
        """Tells whether switching requires_grad changes no gradient that anybody can see.

        A tensor that the model makes itself, such as an initial state, may well collect a gradient: it is forgotten
        with it. A Parameter's or an input's gradient is the user's.
        """
        if tensor.requires_grad == wanted:
            return True
        is_input = self.memory.knows(tensor) and self.memory.node(tensor).op == "placeholder"
        return wanted and id(tensor) not in self.parameters and not is_input

    def refusal(self, kind: type[ConversionError], explanation: str, advice: str) -> ConversionError:
        """Makes an error that names the user's line."""
        return kind(explanation, advice, current_place(self.running[-1])[1])


def same_constant(one: torch.Tensor, other: torch.Tensor) -> bool:
    """Tells whether two tensors hold the same: a constant that every step makes anew is one constant."""
    alike = (one.shape, one.dtype, one.device) == (other.shape, other.dtype, other.device)
    return alike and torch.equal(one, other.detach())
