"""Records torch functions, tensor properties, sizes and the arithmetic on them."""

from __future__ import annotations

import sys
from collections.abc import Callable
from typing import Any

import numpy
import torch
from torch import fx
from torch.utils import _pytree as pytree

from tracecompile.capture.tracing import counted
from tracecompile.capture.tracing.build import is_random
from tracecompile.capture.tracing.functionalize import canonical, is_in_place
from tracecompile.capture.tracing.memory import same_kind
from tracecompile.capture.tracing.node_writer import NodeWriter
from tracecompile.capture.tracing.source import current_place
from tracecompile.capture.tracing.step_numbers import StepNumber, is_users
from tracecompile.capture.tracing.tape import Condition
from tracecompile.capture.tracing.values import TracedFloat, TracedInt, plain
from tracecompile.errors import UnsupportedControlFlow, UnsupportedOperation, UnsupportedState
from tracecompile.operations import UNKNOWN, Fact, operation_named, operation_of_property
from tracecompile.operations.cone import cone


class OperationRecorder(NodeWriter):
    """Decides for each torch function whether it is a node, a plain answer or something to refuse."""

    def record(self, function: Callable[..., Any], args: tuple[Any, ...], kwargs: dict[str, Any]) -> Any:
        """Runs one torch function and writes it down."""
        name = getattr(function, "__name__", "")
        if name in ("__get__", "__set__"):
            return self.record_property(function, args, kwargs)
        facts = operation_named(name).facts
        if Fact.INDEXES in facts:
            args, kwargs = (args[0], *map(self.counted.number, args[1:])), pytree.tree_map(self.counted.number, kwargs)
        if args and self.counted.may_read(name, args[0]):
            return self.counted.read(name, args[0])
        if Fact.READS in facts:
            return self.read_value(function, name, args, kwargs)
        if Fact.ASKS in facts:
            return self.really(function, args, kwargs)
        if Fact.SIZE in facts and isinstance(args[0], torch.Tensor):
            return self.record_size(name, args, kwargs)
        method = getattr(torch.Tensor, name, None) is function or torch.overrides.is_tensor_method_or_property(function)
        if is_in_place(name) and args and isinstance(args[0], torch.Tensor):
            return self.memory.mutate(function, name, args, kwargs)
        if kwargs.get("out") is not None:
            raise self.refusal(
                UnsupportedOperation,
                f"{name}(..., out=...) writes into a tensor that exists already.",
                "Use the value that the function returns.",
            )
        if kwargs.get("inplace"):
            result = self.record(function, args, {**kwargs, "inplace": False})
            return self.memory.mutate(torch.Tensor.copy_, "copy_", (args[0], result), {})
        value = self.really(function, args, kwargs)
        if not any(isinstance(leaf, torch.Tensor) for leaf in pytree.tree_leaves(value)):
            return value
        if isinstance(value, torch.Tensor) and only_of_numpy((args, kwargs)):
            self.node_of(value)
            return value
        self.counted.follow(name, args, value)
        if name == "unbind" and self.counts(args[0]):
            self.counted.count(value, self.really(torch.Tensor.tolist, args[:1], {}), self)
        spelling = ("call_method", name) if method else ("call_function", function)
        op, target, args, kwargs = canonical(spelling[0], spelling[1], args, kwargs)
        return self.write_down(op, target, args, kwargs, value)

    def counts(self, tensor: torch.Tensor) -> bool:
        """Tells whether a tensor is one of whole numbers that ``torch.arange`` counted."""
        known = self.memory.knows(tensor) and not tensor.is_floating_point()
        return known and self.memory.node(tensor).target is torch.arange

    def record_property(self, function: Callable[..., Any], args: tuple[Any, ...], kwargs: dict[str, Any]) -> Any:
        """Answers a question such as ``x.shape`` or ``x.device``."""
        name = function.__self__.__name__  # type: ignore[attr-defined]
        if function.__name__ == "__set__":
            if name == "requires_grad" and self.may_require_grad(args[0], args[1]):
                return self.really(function, args, kwargs)
            if name == "data" and same_kind(args[0], args[1]):
                return self.memory.set_data(function, *args)
            if name in ("data", "requires_grad", "names"):
                raise self.refusal(
                    UnsupportedState,
                    f"The model assigns to .{name} of a tensor.",
                    "Assign a new tensor to the attribute instead.",
                )
            return self.really(function, args, kwargs)
        if name == "shape":
            return self.record_size("size", args[:1], {})
        value = self.really(function, args, kwargs)
        if name == "data":
            return self.write_down("call_method", "detach", args[:1], {}, value)
        if operation_of_property(name) is not UNKNOWN:
            return self.write_down("call_function", getattr, (args[0], name), {}, value)
        return value

    def record_size(self, name: str, args: tuple[Any, ...], kwargs: dict[str, Any]) -> Any:
        """Answers with integers that remember which tensor's size they are."""
        tensor = args[0]
        value = self.really(getattr(torch.Tensor, name), args, kwargs)
        if id(tensor) in self.parameters:
            return value
        if name != "size":
            node = self.add_node("call_method", "numel", (tensor,), {}, value)
            return TracedInt(value, node, self)
        if isinstance(value, int):
            dim = plain(args[1] if len(args) > 1 else kwargs["dim"])
            return self.size_along(tensor, dim, value)
        sizes = [self.size_along(tensor, dim, length) for dim, length in enumerate(value)]
        for dim, size in enumerate(sizes):
            # Not as many rounds of a loop as there are dimensions.
            size.node.meta["place"] = (size.node.meta["place"], dim)
        return torch.Size(sizes)

    def size_along(self, tensor: torch.Tensor, dim: int, value: int) -> TracedInt:
        """Returns one size as a traced integer."""
        node = self.add_node("call_method", "size", (tensor, dim), {}, value)
        return TracedInt(value, node, self)

    def record_number(self, function: Callable[..., Any], *operands: Any) -> Any:
        """Writes down arithmetic on traced numbers."""
        value = function(*[plain(operand) for operand in operands])
        if not isinstance(value, (int, float)):
            return value
        return self.number(value, self.add_node("call_function", function, operands, {}, value))

    def note_comparison(self, node: fx.Node, sides: tuple[Any, Any], outcome: bool) -> None:
        """Notes that Python compares a size, or a number that was handed in."""
        place, where = current_place(self.running[-1])
        self.tape.conditions.append(Condition(sides, outcome, place, where, node=node))

    def note_condition(self, number: StepNumber, other: Any, outcome: bool) -> None:
        """Notes that the user's code compares a step number."""
        if is_users(file := sys._getframe(2).f_code.co_filename) or file == counted.__file__:
            place, where = current_place(self.running[-1])
            # What a size is compared with moves with the length; a plain number stays.
            kept = other if isinstance(other, (TracedInt, TracedFloat)) else plain(other)
            self.tape.conditions.append(Condition((int(number), kept), outcome, place, where, count=number.count))

    def number(self, value: int | float, node: fx.Node) -> Any:
        """Ties a Python number to its node."""
        return TracedInt(value, node, self) if isinstance(value, int) else TracedFloat(value, node, self)

    def read_value(self, function: Callable[..., Any], name: str, args: tuple[Any, ...], kwargs: dict[str, Any]) -> Any:
        """Lets constants be read; the values of anything computed cannot steer Python."""
        tensors = [leaf for leaf in pytree.tree_leaves((args, kwargs)) if isinstance(leaf, torch.Tensor)]
        if all(self.is_fixed(tensor) for tensor in tensors):
            return self.really(function, args, kwargs)
        raise self.refusal(
            UnsupportedControlFlow,
            f"The model reads the value of a tensor in Python ({name.strip('_')}), "
            "so what it computes depends on the data.",
            "Write the choice as a tensor operation, such as torch.where or a product with a mask.",
        )

    def is_fixed(self, tensor: torch.Tensor) -> bool:
        """Tells whether a tensor is a constant of the model, or computed from constants: no parameter, no input."""
        if id(tensor) in self.parameters:
            return False
        if not self.memory.knows(tensor):
            return True
        names = set(self.parameters.values())
        return not any(
            node.op == "placeholder" or node.target in names or is_random(node)
            for node in cone([self.memory.node(tensor)])
        )


def only_of_numpy(arguments: Any) -> bool:
    """Tells whether nothing but numbers and arrays, some of numpy's among them, makes a tensor: a constant.

    Its dtype is that of the array, which a list of Python's numbers would not give it.
    """
    leaves = pytree.tree_leaves(arguments)
    moving = any(isinstance(leaf, (torch.Tensor, TracedInt, TracedFloat)) for leaf in leaves)
    return not moving and any(isinstance(leaf, (numpy.ndarray, numpy.generic)) for leaf in leaves)
