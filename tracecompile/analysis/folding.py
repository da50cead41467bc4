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

from tracecompile.analysis.pointwise import acts_alone, is_pointwise
from tracecompile.layers import Fold
from tracecompile.operations import NORMALISES, Fact, Operation, Rows, operation_of, operation_of_module
from tracecompile.program import StepProgram, example_value

Kind = Literal["static", "rows", "shape", "row count", "number"]
"""static: the same at every step. rows: has the batch in front. shape, row count, number: sizes of such a value."""


def find_fold(program: StepProgram, graph: fx.Graph, sources: tuple[str, ...]) -> Fold | str:
    """Returns how a graph can be computed for many steps at once, or why it must be stepped.

    Args:
        program: Owner of the modules that the graph calls.
        graph: (*sources, *statics) -> values, with the example values in ``meta``.
        sources: Placeholders of what changes over time.
    """
    finder = _Finder(program, sources)
    for node in graph.nodes:
        if node.op == "output":
            still = next((value for value in node.all_input_nodes if finder.kinds[value] != "rows"), None)
            if still is not None:
                return f"{still.name} is not a value of each sample"
            break
        kind = finder.kind_of(node)
        if kind is None:
            known = (
                "a value of each sample" if node.op == "placeholder" else "known to keep the samples of a batch apart"
            )
            return f"{node.name} is not {known}"
        finder.kinds[node] = kind
        finder.note_shared(node)
    both = next((name for name in finder.per_sample if name in finder.shared), None)
    if both is not None:
        return f"{both} is a value of each sample and a weight"
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
        module = self.program.resolve(str(node.target)) if node.op == "call_module" else None
        operation = operation_of(node, module)
        if not isinstance(value, Tensor):
            return self._size(node, operation)
        if kinds & {"shape"} or not self._rows_kept(node, operation, value):
            return None
        return "rows"

    def _size(self, node: fx.Node, operation: Operation) -> Kind | None:
        of = self.kinds[node.all_input_nodes[0]]
        if of == "rows" and operation.name == "size":
            axis = node.args[1] if node.target is not getattr and len(node.args) > 1 else node.kwargs.get("dim")
            return "shape" if axis is None else self._size_of_axis(node, axis)
        if of == "shape" and operation.name == "getitem" and isinstance(node.args[1], int):
            axes = len(example_value(node.all_input_nodes[0]))
            return "row count" if node.args[1] % axes == 0 else "number"
        return None

    def _size_of_axis(self, node: fx.Node, axis: Any) -> Kind | None:
        rank = example_value(node.all_input_nodes[0]).ndim
        return None if not isinstance(axis, int) else "row count" if axis % rank == 0 else "number"

    def _rows_kept(self, node: fx.Node, operation: Operation, value: Tensor) -> bool:
        """Tells whether each row of a node's value depends on the same rows of its operands alone."""
        operands = [source for source in node.all_input_nodes if self.kinds[source] == "rows"]
        shapes = [example_value(source).shape for source in operands]
        counted = any(self.kinds[source] == "row count" for source in node.all_input_nodes)
        if not operands or value.ndim < 2 or {shape[0] for shape in shapes} != {value.shape[0]}:
            return False
        if operation.rows is Rows.SIZES:
            return self._rows_in_front(node)
        if counted:
            return False
        if operation.rows is Rows.SAMPLES:
            return _sample_by_sample(node, operation, operands, len(shapes[0]))
        if operation.rows is Rows.LAST_AXIS:
            return _on_last_axis(node, operands)
        if operation.rows is Rows.INDEX:
            return _indexed_behind(node.args[1])
        if operation.rows is Rows.NAMED_AXES:
            return self._axes_behind(node, operation, shapes[0])
        if is_pointwise(self.program, node) or (acts_alone(node) and node.op != "call_module"):
            return self._aligned(node, value)
        return False

    def note_shared(self, node: fx.Node) -> None:
        """Remembers the static values that a node takes which is not elementwise."""
        if not (is_pointwise(self.program, node) or acts_alone(node)):
            self.shared |= {source.name for source in node.all_input_nodes if self.kinds[source] == "static"}

    def _rows_in_front(self, node: fx.Node) -> bool:
        sizes: Any = node.args[1:]
        if len(sizes) == 1 and isinstance(sizes[0], (tuple, list)):
            sizes = sizes[0]
        if not sizes or node.kwargs:
            return False
        first = sizes[0]
        others = [size for size in sizes[1:] if isinstance(size, fx.Node)]
        in_front = first == -1 or (isinstance(first, fx.Node) and self.kinds[first] == "row count")
        return in_front and all(self.kinds[size] in ("number", "static") for size in others)

    def _axes_behind(self, node: fx.Node, operation: Operation, shape: torch.Size) -> bool:
        """Tells whether an operation names its axes, and the first is none of them."""
        joins = Fact.JOINS in operation.facts
        first = operation.name == "flatten"
        if node.op == "call_module":
            module: Any = self.program.resolve(str(node.target))
            axes = module.start_dim if first else module.dim
        else:
            key = "start_dim" if first else "dim"
            axes = node.args[1] if len(node.args) > 1 else node.kwargs.get(key, 0 if joins or first else None)
        if joins:
            values: Any = node.args[0] if node.args else ()
            ranks = {example_value(v).ndim if self.kinds.get(v) == "rows" else None for v in values}
            if len(ranks) != 1 or None in ranks:
                return False
        listed = axes if isinstance(axes, (tuple, list)) else (axes,)
        rank = len(shape) + (operation.name in ("unsqueeze", "stack"))
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


def _sample_by_sample(node: fx.Node, operation: Operation, operands: list[fx.Node], rank: int) -> bool:
    if operands != [_first_operand(node)]:
        return False
    if operation.facts & (NORMALISES | Fact.RANDOM) and node.op != "call_module":
        # Whether it takes the batch for one, or draws for it, is not asked again when the graph runs.
        return False
    return operation.spatial is None or rank == operation.spatial + 2


def _on_last_axis(node: fx.Node, operands: list[fx.Node]) -> bool:
    if operands != [_first_operand(node)]:
        return False
    others = map(example_value, node.all_input_nodes[1:2])
    return all(isinstance(other, Tensor) and other.ndim <= 2 for other in others)


def _first_operand(node: fx.Node) -> Any:
    return node.args[0] if node.args else node.kwargs.get("input")


def fold_applies(fold: Fold, program: StepProgram, sources: Mapping[str, Tensor]) -> bool:
    """Tells whether a graph can be folded as its modules are now, for sources of these shapes, (steps, *shape) each."""
    modules = [program.resolve(target) for target in fold.modules]
    parts = [part for module in modules if isinstance(module, nn.Module) for part in module.modules()]
    plain = not any(runs_per_step(part) for part in parts)
    rows = {value.shape[1] if value.ndim > 2 else None for value in sources.values()}
    return plain and len(rows) == 1 and None not in rows


def runs_per_step(module: nn.Module) -> bool:
    """Tells whether a module must be called once per time step: it has hooks, draws, or normalises by its batch."""
    counts = bool(operation_of_module(module).facts & (NORMALISES | Fact.RANDOM)) and module.training
    return counts or is_hooked(module)


def is_hooked(module: nn.Module) -> bool:
    """Tells whether something else runs with a module."""
    return bool(module._forward_hooks or module._forward_pre_hooks)


def folded(value: Tensor) -> Tensor:
    """Puts the steps of (steps, rows, ...) side by side: (steps * rows, ...)."""
    return value.reshape(value.shape[0] * value.shape[1], *value.shape[2:])


def unfolded(value: Tensor, steps: int) -> Tensor:
    """Returns (steps * rows, ...) as (steps, rows, ...)."""
    return value.reshape(steps, value.shape[0] // steps, *value.shape[1:])


def repeated(value: Tensor, rows: int, steps: int) -> Tensor:
    """Repeats a value that has one row per sample for every step; one that has a single row stays."""
    return value if value.shape[0] != rows or rows == 1 else value.expand(steps, *value.shape).flatten(0, 1)
