"""What an operation consists of: the core operators of torch that it runs, and torch's own word on what they do.

There are some two thousand operations and more spellings of them; the table of this compiler has the usual ones. Any
other is run once on the values that it had while the model was captured, and what reaches torch's dispatcher answers
for it.
"""

from __future__ import annotations

import warnings
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from functools import lru_cache
from typing import Any

import torch
from torch import Tensor, fx
from torch.utils import _pytree as pytree
from torch.utils._python_dispatch import TorchDispatchMode

from tracecompile.operations import Fact, has, operation_of_function
from tracecompile.program import example_value


def called(node: fx.Node, module: Callable[..., Any] | None = None) -> Any:
    """Runs a node's operation on its example values, without a graph and without moving a random generator."""
    args, kwargs = fx.map_arg((node.args, node.kwargs), example_value)
    with unheard():
        return applied(node, args, kwargs, module)


def applied(node: fx.Node, args: Any, kwargs: Any, module: Callable[..., Any] | None = None) -> Any:
    """Runs a node's operation on other arguments than its own."""
    if module is not None:
        return module(*args, **kwargs)
    if node.op == "call_method":
        return getattr(args[0], str(node.target))(*args[1:], **kwargs)
    return node.target(*args, **kwargs)  # type: ignore[operator]


@contextmanager
def unheard() -> Iterator[None]:
    """Keeps to itself what an operation does besides its value: what it warns of has been said when the model ran."""
    with torch.no_grad(), torch.random.fork_rng(devices=[]), warnings.catch_warnings():
        warnings.simplefilter("ignore")
        yield


def acts_on_elements(node: fx.Node, module: Callable[..., Any] | None = None) -> bool:
    """Tells whether an operation that is not in the table computes every element of its value from the same ones alone.

    Args:
        node: The call.
        module: What a ``call_module`` node calls.
    """
    if "acts_on_elements" not in node.meta:
        node.meta["acts_on_elements"] = _found_out(node, module)
    return bool(node.meta["acts_on_elements"])


def has_shape_of_operands(node: fx.Node) -> bool:
    """Tells whether a value has the shape that its operands are broadcast to."""
    # What a tensor is only made like, such as the input in x.to(input), has no say in its shape.
    sources = node.all_input_nodes[:1] if has(node, Fact.CASTS) else node.all_input_nodes
    shapes = [value.shape for value in map(example_value, sources) if isinstance(value, Tensor)]
    try:
        return bool(shapes) and torch.broadcast_shapes(*shapes) == example_value(node).shape
    except RuntimeError:
        return False


def _found_out(node: fx.Node, module: Callable[..., Any] | None) -> bool:
    operators: list[Any] = []
    try:
        with _Listening(operators):
            called(node, module)
    except Exception:  # whatever an operation has against being run by itself, it is not known then
        return False
    if all(map(_elementwise, operators)):
        return bool(operators)
    if not has_shape_of_operands(node):
        return False
    table = _decompositions()
    if any(not _elementwise(operator) and operator not in table for operator in operators):
        return False
    return _decomposes_elementwise(node, module)


def _decomposes_elementwise(node: fx.Node, module: Callable[..., Any] | None) -> bool:
    from torch.fx.experimental.proxy_tensor import make_fx

    leaves, spec = pytree.tree_flatten(fx.map_arg((node.args, node.kwargs), example_value))
    places = [place for place, leaf in enumerate(leaves) if isinstance(leaf, Tensor)]

    def run(*tensors: Tensor) -> Any:
        given = list(leaves)
        for place, tensor in zip(places, tensors, strict=True):
            given[place] = tensor
        args, kwargs = pytree.tree_unflatten(given, spec)
        return applied(node, args, kwargs, module)

    try:
        with unheard():
            graph = make_fx(run, decomposition_table=_decompositions())(*[leaves[place] for place in places]).graph
    except Exception:  # as above
        return False
    return all(_elementwise(each.target) for each in graph.nodes if each.op == "call_function")


def _elementwise(operator: Any) -> bool:
    if torch.Tag.nondeterministic_seeded in operator.tags:
        return False
    # Torch does not call elementwise what treats all elements alike, such as a copy.
    return torch.Tag.pointwise in operator.tags or Fact.ELEMENTWISE in operation_of_function(operator).facts


@lru_cache(maxsize=1)
def _decompositions() -> dict[Any, Callable[..., Any]]:
    # Imported where it is needed: it takes a while, and few models need it.
    from torch._decomp import core_aten_decompositions

    return dict(core_aten_decompositions().items())


class _Listening(TorchDispatchMode):
    """Notes the operators that reach the dispatcher."""

    def __init__(self, heard: list[Any]) -> None:
        super().__init__()
        self.heard = heard

    @classmethod
    def _should_skip_dynamo(cls) -> bool:
        """Is torch's own way to have no import of ``torch._dynamo``, which takes a second, at the first operation."""
        return False

    def __torch_dispatch__(self, func: Any, types: Any, args: tuple[Any, ...] = (), kwargs: Any = None) -> Any:
        self.heard.append(func)
        return func(*args, **(kwargs or {}))
