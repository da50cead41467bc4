"""Writes nodes into a tape and puts them in the place of others."""

from __future__ import annotations

from typing import Any

import torch
from torch import fx
from torch.utils import _pytree as pytree

from tracecompile.capture.layerwise.probing import Prober
from tracecompile.capture.tracing.tape import Tape
from tracecompile.operations.cone import cone

EXACT = "exact value"
"""The role of what is written beside the user's code."""


class Editor:
    """Changes one tape."""

    def __init__(self, tape: Tape, prober: Prober) -> None:
        self.tape, self.graph, self.prober = tape, tape.graph, prober

    def is_returned(self, node: fx.Node) -> bool:
        """Tells whether the user, or an attribute, is given a node's value."""
        leaves = [*pytree.tree_leaves(self.tape.result), *self.tape.attributes.values()]
        return any(node is leaf for leaf in leaves)

    def new(
        self, like: fx.Node, op: str, target: Any, args: tuple[Any, ...], role: str | None, kwargs: Any = None
    ) -> fx.Node:
        """Writes a node and computes its value.

        Args:
            like: Whose line it has.
            op, target, args, kwargs: What it computes.
            role: What tells it from others at the same place; None for what is written beside the user's code.
        """
        node = self.graph.create_node(op, target, args, kwargs or {})
        node.meta.update(where=like.meta.get("where"), place=(like.meta.get("place"), role or EXACT))
        values, named = fx.map_arg((args, kwargs or {}), lambda used: used.meta["val"])
        with torch.no_grad():
            node.meta["val"] = self.prober.run(node, values, named)
        return node

    def replace(self, node: fx.Node, value: fx.Node, keep: fx.Node | None = None) -> None:
        """Puts a value in the place of a node, in what the user returns too."""
        made = cone([value]) if keep is not None else set()
        node.replace_all_uses_with(value, delete_user_cb=lambda user: user is not keep and user not in made)
        self.tape.result = pytree.tree_map(lambda leaf: value if leaf is node else leaf, self.tape.result)
        self.tape.attributes = {name: value if held is node else held for name, held in self.tape.attributes.items()}
