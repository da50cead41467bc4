"""What those who follow tensors through a trace need of it."""

from __future__ import annotations

from collections.abc import Callable
from typing import Any, Protocol

import torch
from torch import fx, nn

from tracecompile.errors import ConversionError


class Writer(Protocol):
    """What the memory needs of the trace: to look nodes up, to add some, and to refuse."""

    graph: fx.Graph
    root: nn.Module

    def refusal(self, kind: type[ConversionError], explanation: str, advice: str) -> ConversionError:
        """Makes an error that names the user's line."""

    def node_of(self, tensor: torch.Tensor) -> fx.Node:
        """Returns the node of a tensor."""

    def create_arg(self, a: Any) -> Any:
        """Lowers a value to what a node may hold."""

    def lowered(self, arguments: Any) -> Any:
        """Does so, and refuses at the user's line what no node may hold."""

    def may_require_grad(self, tensor: torch.Tensor, wanted: bool) -> bool:
        """Tells whether a tensor's requires_grad may be switched."""

    def really(self, function: Callable[..., Any], args: tuple[Any, ...], kwargs: dict[str, Any]) -> Any:
        """Runs a function without recording it."""

    def add_node(self, op: str, target: Any, args: tuple[Any, ...], kwargs: dict[str, Any], value: Any) -> fx.Node:
        """Appends one node."""
