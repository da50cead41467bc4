"""Which part of a step may be computed for many time steps at once by putting them side by side in the batch.

Every operation must treat the first axis of what changes over time as a batch: the rows of its value depend on the same
rows of its operands alone. What is not known to do so is computed step by step, so an operation is never folded on a
guess.
"""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any, Literal

import torch
from torch import Tensor, fx, nn

from tracecompile.analysis.linearity import operation_name
from tracecompile.analysis.pointwise import acts_alone, is_pointwise
from tracecompile.layers import Fold
from tracecompile.program import StepProgram, example_value

Kind = Literal["static", "rows", "shape", "row count", "number"]
"""static: the same at every step. rows: has the batch in front. shape, row count, number: sizes of such a value."""

_SPATIAL: dict[str, int] = {f"{name}{d}d": d for name in (
    "conv", "conv_transpose", "avg_pool", "max_pool", "adaptive_avg_pool", "adaptive_max_pool", "lp_pool",
    "Conv", "ConvTranspose", "AvgPool", "MaxPool", "AdaptiveAvgPool", "AdaptiveMaxPool", "LPPool",
) for d in (1, 2, 3)}  # fmt: skip
_NORMS = {"BatchNorm1d", "BatchNorm2d", "BatchNorm3d", "GroupNorm"}
_LAST_AXIS = {"linear", "Linear", "Identity", "matmul"}
_DROPOUTS = {"Dropout", "Dropout1d", "Dropout2d", "Dropout3d"}
_JOINING = {"cat", "concat", "concatenate", "stack"}
_BY_AXES = {
    "flatten",
    "Flatten",
    "unsqueeze",
    "squeeze",
    "sum",
    "mean",
    "amax",
    "softmax",
    "narrow",
    "select",
    *_JOINING,
}


def find_fold(program: StepProgram, graph: fx.Graph, sources: tuple[str, ...]) -> Fold | None:
    """Returns how a graph can be computed for many steps at once, or None where it must be stepped.

    Args:
        program: Owner of the modules that the graph calls.
        graph: (*sources, *statics) -> values, with the example values in ``meta``.
        sources: Placeholders of what changes over time.
    """
    finder = _Finder(program, sources)
    for node in graph.nodes:
        if node.op == "output":
            if any(finder.kinds[value] != "rows" for value in node.all_input_nodes):
                return None
            break
        kind = finder.kind_of(node)
        if kind is None:
            return None
        finder.kinds[node] = kind
        finder.note_shared(node)
    if finder.per_sample.keys() & finder.shared:
        return None
    return Fold(tuple(finder.per_sample), tuple(finder.modules))


class _Finder:
    def __init__(self, program: StepProgram, sources: tuple[str, ...]) -> None:
        self.program, self.sources = program, sources
        self.kinds: dict[fx.Node, Kind] = {}
        self.per_sample: dict[str, None] = {}
        self.modules: dict[str, None] = {}
        self.shared: set[str] = set()
        """Static values that an operation takes otherwise than row by row: weights."""

    def kind_of(self, node: fx.Node) -> Kind | None:
        value = example_value(node)
        if node.op == "placeholder":
            if node.name not in self.sources:
                return "static"
            return "rows" if isinstance(value, Tensor) and value.ndim >= 2 else None
        if node.op == "get_attr":
            return "static"
        if node.op == "call_module":
            self.modules[str(node.target)] = None
        kinds = {self.kinds[source] for source in node.all_input_nodes}
        if kinds <= {"static", "number"}:
            return "static"
        name = operation_name(self.program, node)
        if not isinstance(value, Tensor):
            return self._size(node, name, value)
        if kinds & {"shape"} or not self._rows_kept(node, name, value):
            return None
        return "rows"

    def _size(self, node: fx.Node, name: str, value: Any) -> Kind | None:
        of = self.kinds[node.all_input_nodes[0]]
        if of == "rows" and (name == "size" or (name == "getattr" and node.args[1] == "shape")):
            axis = node.args[1] if name == "size" and len(node.args) > 1 else node.kwargs.get("dim")
            return "shape" if axis is None else self._size_of_axis(node, axis)
        if of == "shape" and name == "getitem" and isinstance(node.args[1], int):
            axes = len(example_value(node.all_input_nodes[0]))
            return "row count" if node.args[1] % axes == 0 else "number"
        return None

    def _size_of_axis(self, node: fx.Node, axis: Any) -> Kind | None:
        rank = example_value(node.all_input_nodes[0]).ndim
        return None if not isinstance(axis, int) else "row count" if axis % rank == 0 else "number"

    def _rows_kept(self, node: fx.Node, name: str, value: Tensor) -> bool:
        """Tells whether each row of a node's value depends on the same rows of its operands alone."""
        operands = [source for source in node.all_input_nodes if self.kinds[source] == "rows"]
        shapes = [example_value(source).shape for source in operands]
        counted = any(self.kinds[source] == "row count" for source in node.all_input_nodes)
        if not operands or value.ndim < 2 or {shape[0] for shape in shapes} != {value.shape[0]}:
            return False
        if name in ("view", "reshape", "Unflatten"):
            return self._rows_in_front(node)
        if counted:
            return False
        if name in _SPATIAL:
            return len(shapes[0]) == _SPATIAL[name] + 2 and len(operands) == 1
        if name in _NORMS or name in _DROPOUTS:
            return node.op == "call_module" and len(operands) == 1
        if name in _LAST_AXIS:
            return _on_last_axis(node, name, operands)
        if name == "getitem":
            return _indexed_behind(node.args[1])
        if name in _BY_AXES:
            return self._axes_behind(node, name, shapes[0])
        if is_pointwise(self.program, node) or (acts_alone(node) and node.op != "call_module"):
            return self._aligned(node, value)
        return False

    def note_shared(self, node: fx.Node) -> None:
        """Remembers the static values that a node takes which is not elementwise."""
        if not (is_pointwise(self.program, node) or acts_alone(node)):
            self.shared |= {source.name for source in node.all_input_nodes if self.kinds[source] == "static"}

    def _rows_in_front(self, node: fx.Node) -> bool:
        if node.op == "call_module":
            module: Any = self.program.resolve(str(node.target))
            return isinstance(module, nn.Unflatten) and isinstance(module.dim, int) and module.dim > 0
        sizes: Any = node.args[1:]
        if len(sizes) == 1 and isinstance(sizes[0], (tuple, list)):
            sizes = sizes[0]
        if not sizes or node.kwargs:
            return False
        first = sizes[0]
        others = [size for size in sizes[1:] if isinstance(size, fx.Node)]
        in_front = first == -1 or (isinstance(first, fx.Node) and self.kinds[first] == "row count")
        return in_front and all(self.kinds[size] in ("number", "static") for size in others)

    def _axes_behind(self, node: fx.Node, name: str, shape: torch.Size) -> bool:
        """Tells whether an operation names its axes, and the first is none of them."""
        if node.op == "call_module":
            module: Any = self.program.resolve(str(node.target))
            return isinstance(module, nn.Flatten) and module.start_dim > 0
        default, key = (
            (0 if name in _JOINING or name == "flatten" else None),
            "start_dim" if name == "flatten" else "dim",
        )
        axes = node.args[1] if len(node.args) > 1 else node.kwargs.get(key, default)
        if name in _JOINING:
            values: Any = node.args[0] if node.args else ()
            ranks = {example_value(v).ndim if self.kinds.get(v) == "rows" else None for v in values}
            if len(ranks) != 1 or None in ranks:
                return False
        listed = axes if isinstance(axes, (tuple, list)) else (axes,)
        rank = len(shape) + (name in ("unsqueeze", "stack"))
        return all(isinstance(axis, int) and axis % rank != 0 for axis in listed)

    def _aligned(self, node: fx.Node, value: Tensor) -> bool:
        """Tells whether the rows of all operands of an elementwise operation are those of its value."""
        for source in node.all_input_nodes:
            operand = example_value(source)
            if self.kinds[source] == "rows":
                if operand.ndim != value.ndim:
                    return False
            elif isinstance(operand, Tensor) and operand.ndim >= value.ndim:
                if source.op != "placeholder" or operand.ndim > value.ndim:
                    return False
                self.per_sample[source.name] = None
        return True


def _indexed_behind(index: Any) -> bool:
    """Tells whether an index takes the whole first axis, and parts of others by numbers that are known."""
    if not isinstance(index, tuple) or not index or index[0] != slice(None):
        return False
    parts = [(part.start, part.stop, part.step) if isinstance(part, slice) else (part,) for part in index]
    return None not in index and all(bound is None or isinstance(bound, int) for bounds in parts for bound in bounds)


def _on_last_axis(node: fx.Node, name: str, operands: list[fx.Node]) -> bool:
    if len(operands) != 1 or node.args[0] is not operands[0]:
        return False
    other = example_value(node.args[1]) if name == "matmul" and isinstance(node.args[1], fx.Node) else None
    return name != "matmul" or (isinstance(other, Tensor) and other.ndim <= 2)


def fold_applies(fold: Fold, program: StepProgram, sources: Mapping[str, Tensor]) -> bool:
    """Tells whether a graph can be folded as its modules are now, for sources of these shapes, (steps, *shape) each."""
    modules = [program.resolve(target) for target in fold.modules]
    parts = [part for module in modules if isinstance(module, nn.Module) for part in module.modules()]
    plain = not any(runs_per_step(part) for part in parts)
    rows = {value.shape[1] if value.ndim > 2 else None for value in sources.values()}
    return plain and len(rows) == 1 and None not in rows


def runs_per_step(module: nn.Module) -> bool:
    """Tells whether a module must be called once per time step: it has hooks, draws, or normalises by its batch."""
    counts = isinstance(module, (nn.modules.batchnorm._NormBase, nn.modules.dropout._DropoutNd)) and module.training
    return counts or bool(module._forward_hooks or module._forward_pre_hooks)


def folded(value: Tensor) -> Tensor:
    """Puts the steps of (steps, rows, ...) side by side: (steps * rows, ...)."""
    return value.reshape(value.shape[0] * value.shape[1], *value.shape[2:])


def unfolded(value: Tensor, steps: int) -> Tensor:
    """Returns (steps * rows, ...) as (steps, rows, ...)."""
    return value.reshape(steps, value.shape[0] // steps, *value.shape[1:])


def repeated(value: Tensor, rows: int, steps: int) -> Tensor:
    """Repeats a value that has one row per sample for every step; one that has a single row stays."""
    return value if value.shape[0] != rows or rows == 1 else value.expand(steps, *value.shape).flatten(0, 1)
