"""Runs the part of a prologue that a gradient passes, on some of its rows."""

from __future__ import annotations

from collections.abc import Callable, Collection, Iterable, Sequence
from typing import Any

import torch
from torch import Tensor, fx

from tracecompile.operations.cone import cone
from tracecompile.runtime.twins import Twins

Normalise = Callable[[fx.Node, Tensor], Tensor]
"""Maps a normalisation and the rows that it takes to the rows that it gives."""


class RowRun(fx.Interpreter):
    """Runs a prologue node by node."""

    def __init__(self, prologue: fx.GraphModule, twins: Twins, norms: Collection[fx.Node]) -> None:
        """Has run nothing yet.

        Args:
            prologue: Whose graph is run.
            twins: Of the modules in it, which are called in their place.
            norms: Nodes that normalise by the statistics of all rows.
        """
        super().__init__(prologue)
        self.extra_traceback = False
        self.twins, self.norms = twins, norms

    def values(
        self, operands: Sequence[Any], wanted: Iterable[fx.Node], normalise: Normalise, *, through: bool = False
    ) -> dict[fx.Node, Tensor]:
        """Returns the values of some nodes, with the graph that leads to them.

        Args:
            operands: Of the prologue, some of their rows each.
            wanted: The nodes.
            normalise: Runs the normalisations.
            through: Whether the graph leads through them; else what is computed for them alone has none.
        """
        found: dict[fx.Node, Any] = {}
        self._wanted, self._normalise, self._found = set(wanted), normalise, found
        self._needed = cone(self._wanted)
        self._learned = self._needed if through else cone(self._wanted, self.norms.__contains__)
        with torch.enable_grad():
            # Not the leaves themselves: the user's code may write into what it is given.
            self.run(*map(_passed, operands), enable_io_processing=False)
        # Nothing is held that leads back to whoever runs this: such a ring would wait for the garbage collector.
        self.env, self._normalise, self._found = {}, _nothing, {}
        return found

    def run_node(self, n: fx.Node) -> Any:
        """Runs a node if it is needed, without a graph where only a normalisation reads it."""
        value = None
        if n.op == "placeholder":
            value = super().run_node(n)
        elif n in self._needed:
            with torch.set_grad_enabled(n in self._learned):
                is_norm = n in self.norms
                value = self._normalise(n, self.env[n.all_input_nodes[0]]) if is_norm else super().run_node(n)
        if n in self._wanted:
            self._found[n] = value
        return value

    def call_module(self, target: Any, args: tuple[Any, ...], kwargs: dict[str, Any]) -> Any:
        """Calls the twin of a module."""
        return self.twins.of(self.fetch_attr(target))(*args, **kwargs)


def _nothing(node: fx.Node, value: Tensor) -> Tensor:
    raise NotImplementedError(str(node))


def _passed(value: Any) -> Any:
    return value.view_as(value) if isinstance(value, Tensor) and value.requires_grad else value
