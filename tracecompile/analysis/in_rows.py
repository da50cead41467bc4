"""Which prologues can be computed in pieces: row by row along the first axis but for their normalisations.

A convolution takes every image by itself, and so does all that surrounds it; a normalisation over time and batch ties
the rows together by two numbers a channel alone. Once these are known the rows are computed in pieces.
"""

from __future__ import annotations

from collections.abc import Callable, Iterator
from dataclasses import dataclass

from torch import Tensor, fx, nn

from tracecompile.analysis.norms import is_norm, norm_arguments, takes_own_statistics
from tracecompile.analysis.pointwise import acts_alone
from tracecompile.operations import CUTS, FLAT, SAME_NUMBERS, Fact, Operation, Rows, has, operation_of
from tracecompile.program import StepProgram, example_value, is_tensor


@dataclass(frozen=True)
class InRows:
    """How the rows of a prologue are computed.

    Attributes:
        norms: What ties them together, in order.
        needed: What is computed of the rows: all that a gradient may pass.
        cut: Placeholders that have the rows.
        results: Those of the prologue that have them, by their place among all leaves of what it returns.
        alone: Normalisations of a tensor that a product has made and nothing else reads.
    """

    norms: tuple[fx.Node, ...]
    needed: frozenset[fx.Node]
    cut: tuple[fx.Node, ...]
    results: dict[int, fx.Node]
    alone: frozenset[fx.Node]


def in_rows(program: StepProgram, prologue: fx.GraphModule, attributes: int) -> InRows | None:
    """Returns how the rows of a prologue are computed; None where it mixes them otherwise, or that is not known.

    Args:
        program: After all passes.
        prologue: As it is emitted.
        attributes: How many of its first placeholders are attributes of the model.
    """
    search = _Search(program, prologue.graph)
    try:
        results = search.results()
    except _Mixed:
        return None
    placeholders = [node for node in prologue.graph.nodes if node.op == "placeholder"]
    cut = tuple(node for node in placeholders if node in search.rows)
    if (
        not search.norms
        or not cut
        or search.rows & search.others
        or not search.rows.isdisjoint(placeholders[:attributes])
    ):
        return None
    norms = tuple(node for node in prologue.graph.nodes if search.ties(node))
    if not search.norms.issuperset(norms):
        return None
    alone = frozenset(node for node in norms if search.is_alone(node.all_input_nodes[0]))
    return InRows(norms, frozenset(search.rows | search.others | search.numbers), cut, results, alone)


class _Mixed(Exception):
    """The rows are mixed, or it is not known that they are not."""


class _Search:
    """Goes back from what a prologue returns.

    Attributes:
        rows: Nodes that have the rows.
        others: Tensors that all rows have in common.
        numbers: Sizes.
        norms: Normalisations by statistics of all rows.
    """

    def __init__(self, program: StepProgram, graph: fx.Graph) -> None:
        self.program, self.graph = program, graph
        self.rows: set[fx.Node] = set()
        self.others: set[fx.Node] = set()
        self.numbers: set[fx.Node] = set()
        self.norms: set[fx.Node] = set()

    def results(self) -> dict[int, fx.Node]:
        """Returns the results that have the rows, by their place; all others have no gradient."""
        inputs, invariants, states = next(iter(reversed(self.graph.nodes))).args[0]
        found = {}
        for place, node in enumerate((*inputs, *invariants, *states)):
            if not isinstance(node, fx.Node) or not is_tensor(node) or self._is_constant(node):
                continue
            if place >= len(inputs) + len(invariants):
                raise _Mixed
            self.take(node)
            found[place] = node
        return found

    def is_alone(self, node: fx.Node) -> bool:
        """Tells whether a product has made a tensor that one node reads alone."""
        return len(node.users) == 1 and bool(self._operation(node).facts & Fact.PRODUCT)

    def ties(self, node: fx.Node) -> bool:
        """Tells whether a node normalises by the statistics of all rows."""
        if node.op in ("placeholder", "output") or not is_norm(self.program, node):
            return False
        return takes_own_statistics(node, self._module(node))

    def take(self, node: fx.Node) -> None:
        """Goes back from a node that is to have the rows."""
        waiting = [node]
        while waiting:
            current = waiting.pop()
            if current in self.rows:
                continue
            self.rows.add(current)
            if current.op != "placeholder":
                sources = list(self._sources(current))
                waiting += sources
                for other in current.all_input_nodes:
                    if other not in sources and is_tensor(other):
                        self._take_other(other)

    def _is_constant(self, node: fx.Node) -> bool:
        """Tells whether no gradient passes a node."""
        value = example_value(node)
        if not value.is_floating_point() and not value.is_complex():
            return True
        return node.op != "placeholder" and has(node, CUTS | FLAT | Fact.FILLS)

    def _operation(self, node: fx.Node) -> Operation:
        return operation_of(node, self._module(node))

    def _module(self, node: fx.Node) -> nn.Module | None:
        return self.program.resolve(str(node.target)) if node.op == "call_module" else None

    def _sources(self, node: fx.Node) -> Iterator[fx.Node]:
        """Yields the operands of a node whose rows are its own.

        Raises:
            _Mixed: It is not known to keep its rows apart.
        """
        module = self._module(node)
        operation = operation_of(node, module)
        first = next((source for source in node.args[:1] if isinstance(source, fx.Node) and is_tensor(source)), None)
        if self.ties(node):
            _require(first is not None and example_value(first).ndim >= 2)
            _require(not isinstance(module, nn.SyncBatchNorm) and (module is not None or _has_plain_weights(node)))
            self.norms.add(node)
        elif operation.facts & Fact.RANDOM and (module is None or module.training):
            raise _Mixed
        elif (check := _CHECKS.get(operation.name)) is not None:
            _require(first is not None and check(self, node))
        elif operation.rows is Rows.SAMPLES and operation.spatial is not None:
            _require(first is not None and example_value(first).ndim == operation.spatial + 2)
        elif has(node, Fact.ELEMENTWISE | SAME_NUMBERS | Fact.DETACHES, module) or acts_alone(node):
            yield from self._aligned(node)
            return
        else:
            raise _Mixed
        assert first is not None
        yield first
        for number in node.all_input_nodes:
            if not is_tensor(number):
                self._take_number(number)

    def _aligned(self, node: fx.Node) -> Iterator[fx.Node]:
        """Yields the operands of an elementwise operation that have as many rows as its value."""
        value = example_value(node)
        _require(isinstance(value, Tensor) and value.ndim > 0 and value.shape[0] > 1)
        for source in node.all_input_nodes:
            if not is_tensor(source):
                _require(not self._take_number(source))
            elif example_value(source).ndim == value.ndim and example_value(source).shape[0] == value.shape[0]:
                yield source

    def _take_other(self, node: fx.Node) -> None:
        """Goes back from what all rows have in common."""
        waiting = [node]
        while waiting:
            current = waiting.pop()
            if current not in self.others:
                _require(not self._operation(current).facts & (Fact.RANDOM | Fact.BATCH_STATISTICS))
                self.others.add(current)
                waiting += current.all_input_nodes

    def _take_number(self, node: fx.Node) -> bool:
        """Goes back from a size; tells whether it is one of the first axis, as many times as there are rows."""
        self.numbers.add(node)
        operation, operands = self._operation(node), node.args
        if operation.name == "size" and len(operands) == 2 and node.op == "call_method":
            source, axis = operands
            assert isinstance(source, fx.Node)
            self.take(source)
            _require(isinstance(axis, int))
            return int(str(axis)) % int(example_value(source).ndim) == 0
        if operation.name == "mul" and node.op == "call_function":
            counts = [self._take_number(one) for one in operands if isinstance(one, fx.Node)]
            _require(sum(counts) < 2)
            return any(counts)
        raise _Mixed

    def keeps_first(self, node: fx.Node) -> bool:
        """Tells whether an operation that lays numbers out keeps the rows in front."""
        name = self._operation(node).name
        if node.op == "call_module" or name == "flatten":
            return name == "flatten"
        sizes = list(node.args[1:])
        axis = sizes.pop(0) if name == "unflatten" else 0
        if not isinstance(axis, int) or not sizes:
            return False
        if isinstance(sizes[0], (tuple, list)):
            sizes = list(sizes[0])
        counts: list[bool] = [isinstance(size, fx.Node) and self._take_number(size) for size in sizes]
        if axis % example_value(node.all_input_nodes[0]).ndim:
            return not any(counts)
        return (counts[0] or sizes[0] in (-1,)) and not any(counts[1:])


def _require(known: bool) -> None:
    if not known:
        raise _Mixed


def _has_plain_weights(node: fx.Node) -> bool:
    """Tells whether the weights of a normalising function are handed to the prologue as they are."""
    given = norm_arguments(node.target, node.args, dict(node.kwargs)) or {}
    weights = (given.get("weight"), given.get("bias"))
    return all(value is None or (isinstance(value, fx.Node) and value.op == "placeholder") for value in weights)


def _has_weights(search: _Search, node: fx.Node) -> bool:
    """Tells whether a product is one of rows with weights."""
    return bool(example_value(node.all_input_nodes[0]).ndim >= 2)


def _lays_out(search: _Search, node: fx.Node) -> bool:
    return not node.kwargs and search.keeps_first(node)


_CHECKS: dict[str, Callable[[_Search, fx.Node], bool]] = {
    "linear": _has_weights,
    "flatten": _lays_out,
    "unflatten": _lays_out,
    "view": _lays_out,
    "reshape": _lays_out,
}
"""What has to be true of an operation for its rows to be those of its first operand."""
