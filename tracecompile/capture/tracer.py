"""The tracer: runs the user's code on example tensors and writes down every operation.

The user's code never meets a stand-in for a tensor. A torch-function mode sees each operation on the real ones, and the
recorder knows the node of each tensor; so ``isinstance``, ``is None``, device and dtype questions answer themselves,
and factory calls such as ``torch.zeros`` are nodes rather than constants with a baked batch size.
"""

from __future__ import annotations

import operator
from collections.abc import Callable, Iterator, Mapping
from contextlib import contextmanager
from dataclasses import dataclass, field
from typing import Any

import torch
from torch import fx, nn
from torch.autograd import Function
from torch.overrides import TorchFunctionMode
from torch.utils import _pytree as pytree

from tracecompile.capture.copies import replace_attribute, tensor_attributes
from tracecompile.capture.functionalize import canonical, is_in_place
from tracecompile.capture.memory import Memory
from tracecompile.capture.source import current_place, line_of_failure
from tracecompile.capture.surrogates import SLOT, SurrogateLeaf, apply_directly, surrogates_recorded
from tracecompile.capture.values import TracedFloat, TracedInt, plain
from tracecompile.errors import ConversionError, UnsupportedControlFlow, UnsupportedOperation, UnsupportedState

READS_VALUE = frozenset(
    {"__bool__", "__float__", "__int__", "__index__", "__complex__", "item", "tolist", "numpy", "__array__", "equal"}
    | {"allclose", "is_nonzero", "__contains__"}
)
TENSOR_PROPERTIES = frozenset({"T", "mT", "H", "mH", "real", "imag"})
PASSED_THROUGH = frozenset({"__repr__", "__format__", "__hash__", "__deepcopy__", "stride", "dim", "storage_offset"})


class TooManySteps(Exception):
    """The loop ran longer than the example's chosen length: another axis is the time axis."""


@dataclass
class Tape:
    """What one run of the user's code did.

    Attributes:
        graph: Every operation, in order; in-place updates are already values.
        result: The user's return value with nodes in place of tensors and traced numbers.
        attributes: Node or constant that each tensor attribute holds at the end, by name.
        learning: Whether each of them is part of an autograd graph.
        written: Names of the attributes that hold something else than at the start.
        leaves: The surrogate leaves, by target.
        constants: Tensors that belong to no module, by target.
        inputs: Placeholder of each argument leaf (None for a baked constant).
        states: Placeholder of each attribute that was handed in as a state.
        again: The same call once more on what this one left behind, where it left anything.
    """

    graph: fx.Graph
    result: Any = None
    attributes: dict[str, fx.Node] = field(default_factory=dict)
    learning: dict[str, bool] = field(default_factory=dict)
    written: tuple[str, ...] = ()
    leaves: dict[str, SurrogateLeaf] = field(default_factory=dict)
    constants: dict[str, torch.Tensor] = field(default_factory=dict)
    inputs: list[fx.Node | None] = field(default_factory=list)
    states: dict[str, fx.Node] = field(default_factory=dict)
    again: Tape | None = None


class Recorder(fx.Tracer):
    """One trace of one copy of the model."""

    def __init__(self, model: nn.Module, visits: int | None = None) -> None:
        super().__init__()
        self.root = model
        self.graph = fx.Graph()
        self.tape = Tape(self.graph)
        self.memory = Memory(self)
        self.paths = {module: path for path, module in model.named_modules()}
        self.parameters = {id(value): name for name, value in model.named_parameters(remove_duplicate=False)}
        self.kept = [value for _, value in tensor_attributes(model)]
        self.attributes = {id(value): name for name, value in tensor_attributes(model)}
        self.running = [""]
        self.paused = 0
        self.visits = visits
        self.seen: dict[Any, int] = {}

    # What the user's code sees -------------------------------------------------------------------------------------

    def run(
        self,
        args: tuple[Any, ...],
        kwargs: dict[str, Any],
        names: list[str],
        states: Mapping[str, bool] | None = None,
        state_leaves: tuple[int, ...] = (),
    ) -> Tape:
        """Runs the model and returns the tape.

        Args:
            names: Name of each leaf of the arguments.
            states: Attributes that become placeholders, and whether each is part of an autograd graph.
            state_leaves: Positions of the argument leaves that are states.
        """
        leaves, spec = pytree.tree_flatten((args, kwargs))
        handed = [
            self.placeholder(name, value, position in state_leaves)
            for position, (name, value) in enumerate(zip(names, leaves, strict=True))
        ]
        self.tape.inputs = [node for node, _ in handed]
        for name, learning in (states or {}).items():
            self.hand_in_attribute(name, learning)
        before = {name: id(value) for name, value in tensor_attributes(self.root)}
        copied_args, copied_kwargs = pytree.tree_unflatten([value for _, value in handed], spec)
        with self.recording():
            result = run_user_code(self.root, copied_args, copied_kwargs)
        self.tape.result = pytree.tree_map(self.result_leaf, result)
        self.read_attributes(before)
        return self.tape

    def hand_in_attribute(self, name: str, learning: bool) -> None:
        """Makes the placeholder of a state that an attribute holds."""
        value = dict(tensor_attributes(self.root))[name]
        node = self.graph.placeholder(valid_name(name))
        node.meta.update(val=value.detach().clone(), where=None, place=None)
        # A tensor of its own for every state: two entries of a delay line may still be one and the same zero tensor.
        value = as_computed(value) if learning else value.detach().clone()
        replace_attribute(self.root, name, value)
        self.kept.append(value)
        self.memory.bind(value, node)
        self.tape.states[name] = node

    def placeholder(self, name: str, value: Any, state: bool) -> tuple[fx.Node | None, Any]:
        """Makes the placeholder of one argument leaf and the value that the user's code receives."""
        if isinstance(value, torch.Tensor):
            value = as_computed(value) if state else value.detach().clone()
        elif isinstance(value, bool) or not isinstance(value, (int, float)):
            return None, value
        node = self.graph.placeholder(valid_name(name))
        node.meta.update(val=value, where=None, place=None)
        if isinstance(value, torch.Tensor):
            self.memory.bind(value, node)
            return node, value
        return node, self.number(value, node)

    def result_leaf(self, value: Any) -> Any:
        """Returns the node of one leaf of the user's return value, or the constant that it is."""
        if isinstance(value, torch.Tensor):
            return self.node_of(value)
        return value.node if isinstance(value, (TracedInt, TracedFloat)) else value

    def read_attributes(self, before: dict[str, int]) -> None:
        """Notes what every attribute holds now that the model has run."""
        written = []
        for name, value in tensor_attributes(self.root):
            if not self.memory.knows(value):
                continue
            node = self.node_of(value)
            self.tape.attributes[name] = node
            self.tape.learning[name] = value.requires_grad
            untouched = before.get(name) == id(value) and not self.memory.was_written(value)
            if not untouched:
                written.append(name)
        self.tape.written = tuple(written)

    @contextmanager
    def recording(self) -> Iterator[None]:
        """Sends every torch function, module call and autograd Function to this recorder."""
        original = nn.Module.__call__
        recorder = self

        def call(module: nn.Module, *args: Any, **kwargs: Any) -> Any:
            return recorder.record_module(module, original, args, kwargs)

        nn.Module.__call__ = call  # type: ignore[method-assign]
        try:
            with torch.enable_grad(), _Mode(self), surrogates_recorded(self.record_surrogate):
                yield
        finally:
            nn.Module.__call__ = original  # type: ignore[method-assign]

    # Recording -----------------------------------------------------------------------------------------------------

    def record(self, function: Callable[..., Any], args: tuple[Any, ...], kwargs: dict[str, Any]) -> Any:
        """Runs one torch function and writes it down."""
        name = getattr(function, "__name__", "")
        if name in ("__get__", "__set__"):
            return self.record_property(function, args, kwargs)
        if name in READS_VALUE:
            return self.read_value(function, name, args, kwargs)
        if name in PASSED_THROUGH:
            return self.really(function, args, kwargs)
        if name in ("size", "numel", "nelement") and isinstance(args[0], torch.Tensor):
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
        spelling = ("call_method", name) if method else ("call_function", function)
        op, target, args, kwargs = canonical(spelling[0], spelling[1], args, kwargs)
        return self.write_down(op, target, args, kwargs, value)

    def record_property(self, function: Callable[..., Any], args: tuple[Any, ...], kwargs: dict[str, Any]) -> Any:
        """Answers a question such as ``x.shape`` or ``x.device``."""
        name = function.__self__.__name__  # type: ignore[attr-defined]
        if function.__name__ == "__set__":
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
        if name in TENSOR_PROPERTIES:
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
        return torch.Size([self.size_along(tensor, dim, length) for dim, length in enumerate(value)])

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
        """Tells whether a tensor is a constant of the model: no parameter, no state, nothing computed."""
        if id(tensor) in self.parameters:
            return False
        return not self.memory.knows(tensor) or self.memory.node(tensor).op == "get_attr"

    def record_module(self, module: nn.Module, original: Callable[..., Any], args: Any, kwargs: dict[str, Any]) -> Any:
        """Runs a module: torch's own are one node, the user's are traced through."""
        path = self.paths.get(module)
        if self.paused or path is None:
            return original(module, *args, **kwargs)
        self.running.append(path)
        try:
            if not path or not self.is_leaf_module(module, path):
                return original(module, *args, **kwargs)
            with self.pause():
                return self.record_leaf_module(module, path, args, kwargs)
        finally:
            self.running.pop()

    def record_leaf_module(self, module: nn.Module, path: str, args: tuple[Any, ...], kwargs: dict[str, Any]) -> Any:
        """Runs one of torch's own modules as one node."""
        written = getattr(module, "inplace", False) is True
        if written:
            module.inplace = False  # type: ignore[assignment]
        value = module(*pytree.tree_map(plain, args), **pytree.tree_map(plain, kwargs))
        result = self.write_down("call_module", path, args, kwargs, value)
        if written:
            self.memory.mutate(torch.Tensor.copy_, "copy_", (args[0], result), {})
        return result

    def record_surrogate(self, function: type[Function], args: tuple[Any, ...]) -> Any:
        """Writes down one application of the user's autograd Function as a call of a leaf."""
        if self.paused:
            return apply_directly(function, args)
        with self.pause():
            return self.record_application(function, args)

    def record_application(self, function: type[Function], args: tuple[Any, ...]) -> Any:
        """Runs an autograd Function as one node."""
        plain_args = tuple(plain(arg) for arg in args)
        value = apply_directly(function, plain_args)
        tensors = [arg for arg in args if isinstance(arg, torch.Tensor)]
        positions = iter(range(len(tensors)))
        template = tuple(
            (SLOT, next(positions)) if isinstance(arg, torch.Tensor) else ("constant", arg) for arg in plain_args
        )
        return self.write_down("call_module", self.surrogate_target(function, template), tuple(tensors), {}, value)

    def surrogate_target(self, function: type[Function], template: tuple[tuple[str, Any], ...]) -> str:
        """Returns the target of the leaf for a Function and its constants."""
        for target, leaf in self.tape.leaves.items():
            if leaf.function is function and leaf.template == template:
                return target
        target = f"spike_{len(self.tape.leaves)}"
        self.tape.leaves[target] = SurrogateLeaf(function, template)
        return target

    # Nodes ---------------------------------------------------------------------------------------------------------

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
        try:
            arguments, keywords = self.create_arg(args), self.create_arg(kwargs)
        except NotImplementedError as error:
            raise self.refusal(
                UnsupportedOperation,
                f"An operation takes a value that no graph can hold: {error}.",
                "Pass tensors and Python numbers to torch functions.",
            ) from error
        node = self.graph.create_node(op, target, arguments, keywords)
        node.meta.update(val=snapshot(value), where=where, place=place)
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
        if isinstance(a, torch.Size):
            return tuple(self.create_arg(length) for length in a)
        return super().create_arg(a)

    def node_of(self, tensor: torch.Tensor) -> fx.Node:
        """Returns the node of a tensor; parameters and the model's constants get theirs at first use."""
        if self.memory.knows(tensor):
            return self.memory.node(tensor)
        name = self.parameters.get(id(tensor)) or self.attributes.get(id(tensor))
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
        target = f"captured_{valid_name(name)}" if name else f"captured_{len(self.tape.constants)}"
        self.tape.constants[target] = tensor.detach().clone()
        return target

    def refusal(self, kind: type[ConversionError], explanation: str, advice: str) -> ConversionError:
        """Makes an error that names the user's line."""
        return kind(explanation, advice, current_place(self.running[-1])[1])


class _Mode(TorchFunctionMode):
    """Hands every torch function to the recorder."""

    def __init__(self, recorder: Recorder) -> None:
        super().__init__()
        self.recorder = recorder

    def __torch_function__(self, func: Any, types: Any, args: tuple[Any, ...] = (), kwargs: Any = None) -> Any:
        if self.recorder.paused:
            return func(*args, **(kwargs or {}))
        with self.recorder.pause():
            return self.recorder.record(func, args, kwargs or {})


def run_user_code(model: nn.Module, args: tuple[Any, ...], kwargs: dict[str, Any]) -> Any:
    """Calls the model; the search for the user's line ends at this frame."""
    try:
        return model(*args, **kwargs)
    except (ConversionError, TooManySteps):
        raise
    except Exception as error:
        message = f"The model failed on the example: {type(error).__name__}: {error}"
        raise ModelFailure(message, "Check that the example fits the model.", line_of_failure(error)) from error


class ModelFailure(ConversionError):
    """The user's code raised while it ran on the example."""


def as_computed(value: torch.Tensor) -> torch.Tensor:
    """Returns a tensor that autograd takes for the result of an operation, as a state is from the second step on."""
    fresh = value.detach().clone()
    return fresh.requires_grad_().clone() if fresh.is_floating_point() else fresh


def snapshot(value: Any) -> Any:
    """Returns a value as ``meta["val"]`` keeps it: outside autograd."""
    return pytree.tree_map(lambda leaf: leaf.detach() if isinstance(leaf, torch.Tensor) else plain(leaf), value)


def valid_name(name: str) -> str:
    """Turns a path such as "lif.history[1]" into a Python identifier."""
    return "".join(letter if letter.isalnum() else "_" for letter in name).strip("_")
