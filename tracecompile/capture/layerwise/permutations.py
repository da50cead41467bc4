"""Elementwise work between a permutation of the axes and its inverse, done without either.

A library may bring the neurons' axis to the end, compute, and bring it back. The permutation then stands between a
state and its next value, which hides that every neuron is on its own. So elementwise operations are written on the
tensors as they were, and the permutation after them; one that undoes another disappears.
"""

from __future__ import annotations

from typing import Any

import torch
from torch import fx
from torch.utils import _pytree as pytree

from tracecompile.analysis.pointwise import acts_alone, acts_elementwise
from tracecompile.capture.tracing.tape import Tape
from tracecompile.operations import Fact, has

Permutation = tuple[int, ...]


def undo_permutations(tape: Tape) -> None:
    """Rewrites a tape in place."""
    if any(_permutation(node) is not None for node in tape.graph.nodes):
        _Permutations(tape).rewrite()


class _Permutations:
    """Knows which nodes are a permutation of another node."""

    def __init__(self, tape: Tape) -> None:
        self.tape = tape
        self.graph = tape.graph
        self.form: dict[fx.Node, tuple[fx.Node, Permutation]] = {}
        self.instead: dict[fx.Node, fx.Node] = {}

    def rewrite(self) -> None:
        for node in list(self.graph.nodes):
            permutation = _permutation(node)
            if permutation is not None:
                self._permuted(node, permutation)
            elif any(source in self.form for source in node.all_input_nodes) and self._is_elementwise(node):
                self._computed_before(node)

        def present(leaf: Any) -> Any:
            return self.instead.get(leaf, leaf) if isinstance(leaf, fx.Node) else leaf

        self.tape.result = pytree.tree_map(present, self.tape.result)
        self.tape.attributes = {name: present(node) for name, node in self.tape.attributes.items()}

    def _permuted(self, node: fx.Node, permutation: Permutation) -> None:
        source = node.args[0]
        assert isinstance(source, fx.Node)
        base, before = self.form.get(source, (source, tuple(range(len(permutation)))))
        total = tuple(before[axis] for axis in permutation)
        if total == tuple(range(len(total))):
            self._replace(node, base)
        else:
            self.form[node] = (base, total)

    def _is_elementwise(self, node: fx.Node) -> bool:
        if not isinstance(node.meta["val"], torch.Tensor) or node.kwargs:
            return False
        leaf = self.tape.leaves.get(str(node.target)) if node.op == "call_module" else None
        return acts_elementwise(leaf, node) if leaf is not None else acts_alone(node)

    def _computed_before(self, node: fx.Node) -> None:
        """Writes an operation on the unpermuted tensors, with the permutation after it."""
        forms = {self.form[source][1] for source in node.all_input_nodes if source in self.form}
        shape = node.meta["val"].shape
        if len(forms) != 1 or len(next(iter(forms))) != len(shape):
            return
        (permutation,) = forms
        inverse = tuple(permutation.index(axis) for axis in range(len(permutation)))
        with self.graph.inserting_before(node):
            bases = {source: self._base(source, inverse, node) for source in node.all_input_nodes}
            args = fx.map_arg(node.args, bases.__getitem__)
            made = self.graph.create_node(node.op, node.target, args, {})
            made.meta.update(node.meta, val=node.meta["val"].permute(inverse))
            moved = self._new(node, "permute", (made, *permutation), node.meta["val"])
        self.form[moved] = (made, permutation)
        self._replace(node, moved)

    def _base(self, source: fx.Node, inverse: Permutation, reader: fx.Node) -> fx.Node:
        if source in self.form:
            return self.form[source][0]
        value = source.meta["val"]
        if not isinstance(value, torch.Tensor) or value.dim() == 0:
            return source
        sizes = (*[1] * (len(inverse) - value.dim()), *value.shape)
        wide = source
        for _ in range(len(inverse) - value.dim()):
            wide = self._new(reader, "unsqueeze", (wide, 0), wide.meta["val"].unsqueeze(0))
        return self._new(reader, "permute", (wide, *inverse), value.reshape(sizes).permute(inverse))

    def _new(self, like: fx.Node, method: str, args: tuple[Any, ...], value: torch.Tensor) -> fx.Node:
        node = self.graph.call_method(method, args)
        node.meta.update(val=value, where=like.meta.get("where"), place=(like.meta["place"], "permuted", method))
        return node

    def _replace(self, node: fx.Node, by: fx.Node) -> None:
        node.replace_all_uses_with(by)
        self.instead = {old: by if new is node else new for old, new in self.instead.items()} | {node: by}
        self.graph.erase_node(node)


def _permutation(node: fx.Node) -> Permutation | None:
    """Returns the axes that a node's axes are, where all that it does is to permute them."""
    if not has(node, Fact.PERMUTES):
        return None
    source = node.args[0] if node.args else None
    if not isinstance(source, fx.Node) or node.kwargs or any(isinstance(arg, fx.Node) for arg in node.args[1:]):
        return None
    # Each axis is known by its length.
    marked = torch.empty(tuple(range(source.meta["val"].dim())), device="meta")
    target: Any = getattr(torch.Tensor, node.target) if isinstance(node.target, str) else node.target
    return tuple(target(marked, *node.args[1:]).shape)
