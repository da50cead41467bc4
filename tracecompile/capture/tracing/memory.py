"""Which node is each tensor, also after it was written in place."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass
from typing import Any

import torch
from torch import fx

from tracecompile.capture.tracing.functionalize import on_copy, out_of_place, write_through
from tracecompile.capture.tracing.masked import masked_write
from tracecompile.capture.tracing.writer import Writer
from tracecompile.errors import UnsupportedState
from tracecompile.exact import exact_value

COUNTING = ("add_", "sub_", "mul_")
"""What makes whole numbers of whole numbers, of the type of the first."""


@dataclass
class Entry:
    """One tensor of the running trace.

    Attributes:
        tensor: Kept alive, so that its identity is not reused.
        node: What it is now.
        base: Identity of the tensor that it is a view of, where one node says how.
        made: The node that made it: how a view is taken again after its base was written.
        stale: It shows memory that was written since in a way that has no value form.
        outdated: Its base was written: it has to be taken again.
        written: It was written in place.
    """

    tensor: torch.Tensor
    node: fx.Node
    base: int | None
    made: fx.Node
    stale: bool = False
    outdated: bool = False
    written: bool = False


class Memory:
    """Follows tensors by identity and their memory by address."""

    def __init__(self, recorder: Writer) -> None:
        self.recorder = recorder
        self.entries: dict[int, Entry] = {}
        self.shared: dict[int, list[int]] = {}

    def knows(self, tensor: torch.Tensor) -> bool:
        """Tells whether a tensor has a node."""
        return id(tensor) in self.entries

    def was_written(self, tensor: torch.Tensor) -> bool:
        """Tells whether a tensor was written in place, itself or through a view."""
        entry = self.entries.get(id(tensor))
        return entry is not None and (entry.written or entry.outdated or entry.stale)

    def same_memory(self, tensor: torch.Tensor) -> torch.Tensor | None:
        """Returns a tensor with a node that is the same stretch of memory as one without."""
        if tensor.grad_fn is not None or not self._address(tensor):
            return None
        for key in self.shared.get(self._address(tensor), []):
            known = self.entries[key].tensor
            layout = (known.shape, known.stride(), known.storage_offset(), known.dtype)
            if layout == (tensor.shape, tensor.stride(), tensor.storage_offset(), tensor.dtype):
                return known
        return None

    def bind(self, tensor: torch.Tensor, node: fx.Node) -> None:
        """Ties a tensor to its node."""
        group = self.shared.setdefault(self._address(tensor), []) if self._address(tensor) else []
        sources = {id(entry.tensor) for key in group if (entry := self.entries[key]).node in node.all_input_nodes}
        base = next(iter(sources)) if len(sources) == 1 else None
        self.entries[id(tensor)] = Entry(tensor, node, base, node)
        group.append(id(tensor))

    def node(self, tensor: torch.Tensor) -> fx.Node:
        """Returns what a tensor is now."""
        entry = self.entries[id(tensor)]
        if entry.stale:
            raise self.recorder.refusal(
                UnsupportedState,
                "A tensor is read whose memory was written through another tensor.",
                "Write the update out of place: a = a * b instead of a.mul_(b).",
            )
        if entry.outdated and entry.base is not None:
            entry.node = self._taken_again(entry)
            entry.outdated = False
        return entry.node

    def _taken_again(self, entry: Entry) -> fx.Node:
        assert entry.base is not None
        base = self.entries[entry.base]
        current = self.node(base.tensor)
        source = entry.made.all_input_nodes[0]
        node = self.recorder.graph.node_copy(entry.made, lambda old: current if old is source else old)
        node.meta = {**entry.made.meta, "val": entry.tensor.detach().clone()}
        return node

    def mutate(self, function: Callable[..., Any], name: str, args: tuple[Any, ...], kwargs: dict[str, Any]) -> Any:
        """Runs an in-place call and records the value that it leaves behind."""
        recorder = self.recorder
        tensor = args[0]
        self._require_no_parameter(tensor, name)
        if name == "requires_grad_":
            if recorder.may_require_grad(tensor, args[1] if len(args) > 1 else kwargs.get("requires_grad", True)):
                return recorder.really(function, args, kwargs)
            raise recorder.refusal(
                UnsupportedState,
                "The model switches requires_grad of a tensor within forward.",
                "Leave it to autograd; use detach() to stop a gradient.",
            )
        recorder.node_of(tensor)
        group = self.shared.get(self._address(tensor), [id(tensor)])
        for key in group:
            entry = self.entries[key]
            entry.node.meta["val"] = _cloned(entry.node.meta["val"])
            entry.made.meta["val"] = _cloned(entry.made.meta["val"])
        node = self._value_left(function, name, args, kwargs)
        self._written(id(tensor), node, group)
        return None if name == "__setitem__" else tensor

    def _require_no_parameter(self, tensor: torch.Tensor, name: str) -> None:
        if self._address(tensor) in {self._address(parameter) for parameter in self.recorder.root.parameters()}:
            raise self.recorder.refusal(
                UnsupportedState,
                f"The model writes one of its Parameters ({name}) in forward.",
                "Compute with a new value: clamp or normalise the parameter where it is used.",
            )

    def set_data(self, function: Callable[..., Any], tensor: torch.Tensor, value: torch.Tensor) -> None:
        """Records ``tensor.data = value``: another value in memory of its own, with the gradient of the one before."""
        self._require_no_parameter(tensor, "data")
        recorder = self.recorder
        before, given = recorder.node_of(tensor), recorder.node_of(value)
        group = self.shared.get(self._address(tensor), [id(tensor)])
        group.remove(id(tensor))
        for key in group:
            if self.entries[key].base == id(tensor):  # what was taken of it stays as it is
                self.entries[key].base = None
        recorder.really(function, (tensor, value), {})
        held = tensor.detach().clone()
        node = recorder.add_node("call_function", exact_value, (before, given), {}, held)
        self.bind(tensor, node)
        self.entries[id(tensor)].written = True

    def _value_left(self, function: Callable[..., Any], name: str, args: tuple[Any, ...], kwargs: Any) -> fx.Node:
        """Runs an in-place call and returns the node of what the tensor holds then."""
        recorder, tensor = self.recorder, args[0]
        if name == "__setitem__" or (name == "index_put_" and len(args) == 3 and not kwargs):
            chosen = masked_write(recorder, *args)
            if chosen is not None:
                recorder.really(function, args, kwargs)
                return chosen
        op, target, arguments, keywords = out_of_place(function, name, args, kwargs)
        if name not in ("__setitem__", "copy_", "zero_", "fill_") and promotes(name, args, tensor.dtype):
            op, target, arguments, keywords = on_copy(function, name, args, kwargs)
        lowered = recorder.lowered(arguments)
        source = lowered[1] if name == "copy_" else None
        recorder.really(function, args, kwargs)
        if source is not None and same_kind(source.meta["val"], tensor):
            node: fx.Node = source
        else:
            node = recorder.add_node(op, target, lowered, recorder.lowered(keywords), tensor.detach().clone())
        if not torch.is_grad_enabled() and tensor.is_floating_point() and not tensor.requires_grad:
            node = recorder.add_node("call_method", "detach", (node,), {}, tensor.detach().clone())
        return node

    def _written(self, key: int, node: fx.Node, group: list[int]) -> None:
        """Gives a written tensor its new node and carries the write to its base and its views."""
        entry = self.entries[key]
        entry.node, entry.written, entry.stale, entry.outdated = node, True, False, False
        chain = {key}
        while entry.base is not None and entry.base in self.entries:
            base = self.entries[entry.base]
            made = entry.made
            view = made.target if isinstance(made.target, str) else getattr(made.target, "__name__", "")
            view = "__getitem__" if view == "getitem" else view
            if not hasattr(torch.Tensor, view) or made.kwargs or not made.args or base.stale:
                break
            old = base.node
            base.node = self.recorder.add_node(
                "call_function",
                write_through,
                (old, entry.node, view, *made.args[1:]),
                {},
                base.tensor.detach().clone(),
            )
            base.written, base.outdated = True, False
            chain.add(id(base.tensor))
            entry = base
        for other in group:
            if other not in chain:
                self._disturbed(self.entries[other], chain)

    def _disturbed(self, entry: Entry, fresh: set[int]) -> None:
        base = entry.base
        while base is not None and base not in fresh:
            base = self.entries[base].base if base in self.entries else None
        if base is None or entry.written:
            entry.stale = True
        else:
            entry.outdated = True

    @staticmethod
    def _address(tensor: torch.Tensor) -> int:
        return tensor.untyped_storage().data_ptr()


def promotes(name: str, args: tuple[Any, ...], dtype: torch.dtype) -> bool:
    """Tells whether the out-of-place twin might answer in another dtype than the tensor's own."""
    others = [arg for arg in args[1:] if isinstance(arg, torch.Tensor)]
    if any(torch.promote_types(other.dtype, dtype) != dtype for other in others):
        return True
    counts = dtype != torch.bool and name in COUNTING and all(type(arg) is int for arg in args[1:])
    return not dtype.is_floating_point and not counts


def same_kind(source: Any, tensor: torch.Tensor) -> bool:
    """Tells whether a copied value needs neither expansion nor conversion."""
    return isinstance(source, torch.Tensor) and source.shape == tensor.shape and source.dtype == tensor.dtype


def _cloned(value: Any) -> Any:
    return value.clone() if isinstance(value, torch.Tensor) else value
