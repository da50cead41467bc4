"""Runs single operations of a tape on data of its own."""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

import torch
from torch import Tensor, fx, nn

from tracecompile.capture.tracing.build import find
from tracecompile.capture.tracing.surrogates import SurrogateLeaf
from tracecompile.capture.tracing.tape import Tape

FAILURES = (RuntimeError, TypeError, IndexError, ValueError, AttributeError, NotImplementedError)
"""What an operation may raise on operands that it cannot take."""


class Prober:
    """Knows the modules of one tape, and draws data that tells time steps apart whatever the example shows."""

    def __init__(self, tape: Tape, root: nn.Module) -> None:
        self.tape = tape
        self.root = root
        self.generator = torch.Generator().manual_seed(0)
        self.values: dict[fx.Node, Any] = {}

    def module(self, node: fx.Node) -> nn.Module | None:
        """Returns the module that a node calls, if it does."""
        if node.op != "call_module":
            return None
        leaf = self.tape.leaves.get(str(node.target))
        module: nn.Module = leaf if leaf is not None else find(self.root, str(node.target))
        return module

    def may_run(self, node: fx.Node) -> bool:
        """Tells whether a node may be run again: a whole neuron has a state."""
        leaf = self.tape.leaves.get(str(node.target)) if node.op == "call_module" else None
        return node.op.startswith("call_") and (leaf is None or isinstance(leaf, SurrogateLeaf))

    def function(self, node: fx.Node) -> Callable[..., Any]:
        """Returns what a node computes, with parameters drawn anew where it is a module."""
        if node.op == "call_method":
            return lambda first, *args, **kwargs: getattr(first, str(node.target))(*args, **kwargs)
        module = self.module(node)
        return self._redrawn(module) if module is not None else node.target  # type: ignore[return-value]

    def run(self, node: fx.Node, args: Any, kwargs: Any) -> Any:
        """Runs a node as it is on values."""
        if node.op == "call_method":
            return getattr(args[0], str(node.target))(*args[1:], **kwargs)
        module = self.module(node)
        return module(*args, **kwargs) if module is not None else node.target(*args, **kwargs)  # type: ignore[operator]

    def drawn(self, node: fx.Node) -> Any:
        """Returns a value of the kind that a node has on the example; numbers and whole numbers as they are."""
        if node not in self.values:
            value = node.meta["val"]
            self.values[node] = self.noise(value) if isinstance(value, Tensor) else value
        return self.values[node]

    def noise(self, like: Tensor) -> Tensor:
        """Draws a tensor of the kind of another."""
        if like.dtype == torch.bool:
            return (torch.rand(like.shape, generator=self.generator) < 0.5).to(like.device)
        if not like.is_floating_point():
            return like
        return torch.randn(like.shape, generator=self.generator).to(like)

    def _redrawn(self, module: nn.Module) -> Callable[..., Any]:
        """Returns a module's function with other parameters: those of a fresh model may be zero and hide what mixes."""
        drawn = {name: self.noise(value) for name, value in module.named_parameters()}
        drawn |= {name: value.clone() for name, value in module.named_buffers()}
        return lambda *args, **kwargs: torch.func.functional_call(module, drawn, args, kwargs)
