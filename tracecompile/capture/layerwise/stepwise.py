"""What a computation over a whole sequence is at one time step, for operations that treat every step alike."""

from __future__ import annotations

import operator
from typing import Any

import torch
from torch import fx, nn
from torch.nn import functional as F

from tracecompile.capture.tracing.build import find
from tracecompile.capture.tracing.tape import Tape

ELEMENTWISE_MODULES = (nn.Identity, nn.ReLU, nn.Sigmoid, nn.Tanh, nn.LeakyReLU, nn.ELU, nn.GELU, nn.SiLU, nn.Softplus)
BATCHED_MODULES = (
    nn.Conv1d, nn.Conv2d, nn.Conv3d, nn.AvgPool1d, nn.AvgPool2d, nn.AvgPool3d, nn.MaxPool1d, nn.MaxPool2d,
    nn.AdaptiveAvgPool1d, nn.AdaptiveAvgPool2d, nn.Linear, nn.Flatten, *ELEMENTWISE_MODULES,
)  # fmt: skip
"""What treats every sample of its first axis alike; no normalisation and no dropout, which mix samples or draw."""
ELEMENTWISE = frozenset(
    {torch.relu, F.relu, torch.sigmoid, F.sigmoid, torch.tanh, F.tanh, F.leaky_relu, F.gelu, F.silu}
)
ARITHMETIC = frozenset({operator.add, operator.sub, operator.mul, operator.truediv})
BATCHED = frozenset(
    {F.conv1d, F.conv2d, F.conv3d, F.avg_pool1d, F.avg_pool2d, F.max_pool1d, F.max_pool2d, F.adaptive_avg_pool2d}
    | {torch.conv1d, torch.conv2d, torch.conv3d, torch.max_pool2d, F.linear}
)
RESHAPES = ("view", "reshape", "unflatten")


class Stepwise:
    """Writes the computation of one time step of what a tape computes for all of them."""

    def __init__(self, tape: Tape, root: nn.Module) -> None:
        self.tape, self.root = tape, root
        self.learns: dict[fx.Node, bool] = {}
        self.made: dict[tuple[fx.Node, int, int], fx.Node | None] = {}

    def has_parameters(self, node: fx.Node) -> bool:
        """Tells whether a node is computed with parameters."""
        if node not in self.learns:
            own = False
            if node.op == "get_attr":
                constant = str(node.target) in self.tape.constants
                own = not constant and isinstance(find(self.root, str(node.target)), nn.Parameter)
            elif node.op == "call_module" and str(node.target) not in self.tape.leaves:
                own = any(True for _ in find(self.root, str(node.target)).parameters())
            self.learns[node] = own or any(self.has_parameters(source) for source in node.all_input_nodes)
        return self.learns[node]

    def at(self, node: fx.Node, dim: int, step: int) -> fx.Node | None:
        """Returns a node's slice at one step of its time axis, computed from that step alone; None where it cannot be.

        New nodes are written at the graph's present insertion point.
        """
        key = (node, dim, step)
        if key not in self.made:
            self.made[key] = (
                self._stacked(node, dim, step) or self._raw(node, dim, step) or self._applied(node, dim, step)
            )
        return self.made[key]

    def _stacked(self, node: fx.Node, dim: int, step: int) -> fx.Node | None:
        items = node.args[0] if node.target is torch.stack else None
        along = node.args[1] if len(node.args) > 1 else node.kwargs.get("dim", 0)
        if not isinstance(items, (list, tuple)) or along != dim:
            return None
        item = items[step]
        return item if isinstance(item, fx.Node) else None

    def _raw(self, node: fx.Node, dim: int, step: int) -> fx.Node | None:
        if self.has_parameters(node):
            return None
        return self.new(node, "call_method", "select", (node, dim, step), {}, node.meta["val"].select(dim, step))

    def _applied(self, node: fx.Node, dim: int, step: int) -> fx.Node | None:
        if dim == 0 and node.target in RESHAPES:
            return self._unflattened(node, step)
        if not self._keeps_time(node, dim):
            return None
        arguments: list[Any] = []
        for place, argument in enumerate(node.args):
            if not isinstance(argument, fx.Node) or not isinstance(argument.meta["val"], torch.Tensor):
                arguments.append(argument)
                continue
            moves = place == 0 if node.target not in ARITHMETIC else self._moves(argument, node, dim)
            found = self.at(argument, dim, step) if moves else argument
            if moves is None or found is None:
                return None
            arguments.append(found)
        return self.new(node, node.op, node.target, tuple(arguments), dict(node.kwargs), None)

    @staticmethod
    def _moves(operand: fx.Node, total: fx.Node, dim: int) -> bool | None:
        """Tells whether an operand has the time axis of the result; None where it broadcasts along it in some way."""
        value, full = operand.meta["val"], total.meta["val"]
        if value.dim() == full.dim() and value.shape[dim] == full.shape[dim]:
            return True
        return False if value.dim() < full.dim() - dim else None

    def _keeps_time(self, node: fx.Node, dim: int) -> bool:
        if node.op == "call_module" and str(node.target) not in self.tape.leaves:
            module = find(self.root, str(node.target))
            last = isinstance(module, nn.Linear) and dim < node.meta["val"].dim() - 1
            return last or isinstance(module, ELEMENTWISE_MODULES)
        if node.target is F.linear or node.target is operator.matmul:
            weights = node.args[1]
            plain = isinstance(weights, fx.Node) and weights.meta["val"].dim() <= 2
            return plain and dim < node.meta["val"].dim() - 1
        return node.target in ELEMENTWISE or node.target in ARITHMETIC

    def _unflattened(self, node: fx.Node, step: int) -> fx.Node | None:
        """Handles ``f(x.flatten(0, 1)).view(T, B, ...)``: f of the slice, in the shape that follows T."""
        source = node.args[0]
        assert isinstance(source, fx.Node)
        whole, flat = node.meta["val"], source.meta["val"]
        if whole.dim() < 2 or flat.shape[0] != whole.shape[0] * whole.shape[1]:
            return None
        found = self._of_samples(source, whole.shape[:2], step)
        if found is None or whole.shape[2:] == flat.shape[1:] or node.target == "unflatten":
            return found if whole.shape[2:] == flat.shape[1:] else None
        sizes = node.args[1:] if len(node.args) > 2 else tuple(node.args[1])  # type: ignore[arg-type]
        return self.new(node, "call_method", "reshape", (found, *sizes[1:]), {}, whole.select(0, step))

    def _of_samples(self, node: fx.Node, sizes: torch.Size, step: int) -> fx.Node | None:
        """Returns the rows of one step of what treats time and batch as one axis of samples."""
        source = node.args[0] if node.args and isinstance(node.args[0], fx.Node) else None
        if source is None:
            return None
        if node.target in ("flatten", torch.flatten, "view", "reshape"):
            given, flat = source.meta["val"], node.meta["val"]
            joins = given.dim() == flat.dim() + 1 and given.shape[:2] == sizes and given.shape[2:] == flat.shape[1:]
            if joins:
                return self.at(source, 0, step)
            return None
        module = (
            find(self.root, str(node.target))
            if node.op == "call_module" and str(node.target) not in self.tape.leaves
            else None
        )
        if not (isinstance(module, BATCHED_MODULES) or node.target in BATCHED or node.target in ELEMENTWISE):
            return None
        before = self._of_samples(source, sizes, step)
        if before is None:
            return None
        return self.new(node, node.op, node.target, (before, *node.args[1:]), dict(node.kwargs), None)

    def new(
        self, like: fx.Node, op: str, target: Any, args: tuple[Any, ...], kwargs: dict[str, Any], value: Any
    ) -> fx.Node:
        """Writes one node; it stands at the place of what it is a part of."""
        node = self.tape.graph.create_node(op, target, args, kwargs)
        place = like.meta.get("place")
        node.meta.update(where=like.meta.get("where"), place=("at one step", place))
        node.meta["val"] = self.value(node) if value is None else value
        return node

    def value(self, node: fx.Node) -> Any:
        """Computes the value of a node on the example."""
        args, kwargs = fx.map_arg((node.args, node.kwargs), lambda used: used.meta["val"])
        with torch.no_grad():
            if node.op == "call_module":
                return find(self.root, str(node.target))(*args, **kwargs)
            if node.op == "call_method":
                return getattr(args[0], str(node.target))(*args[1:], **kwargs)
            return node.target(*args, **kwargs)  # type: ignore[operator]
