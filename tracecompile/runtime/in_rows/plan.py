"""How the rows of a prologue are cut, and what is found out by running one part of them."""

from __future__ import annotations

import math
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass
from typing import Any

from torch import Tensor, fx

from tracecompile.analysis.in_rows import InRows
from tracecompile.runtime.before import Before
from tracecompile.runtime.in_rows.norms import weighted, weights_of
from tracecompile.runtime.in_rows.run import RowRun
from tracecompile.runtime.twins import Twins, leads_past

Flags = list[bool]


@dataclass(frozen=True)
class Cut:
    """Into how many parts the rows can be cut.

    Attributes:
        count: Steps, or samples where they come first.
        sizes: Of the first axis of each operand that has the rows, by its place.
    """

    count: int
    sizes: Mapping[int, int]

    def part(self, value: Tensor, begin: int, end: int) -> Tensor:
        """Returns the rows of some parts of a tensor that has all rows."""
        each = len(value) // self.count
        return value.narrow(0, begin * each, (end - begin) * each)

    def parts(self, size: int) -> Iterator[tuple[int, int]]:
        """Yields where each of the pieces begins and ends, in parts."""
        return ((begin, min(begin + size, self.count)) for begin in range(0, self.count, size))


class Plan:
    """How the rows of one prologue are computed.

    Attributes:
        prologue: Whose rows they are.
        rows: Its nodes.
        size: How many steps, or samples where they come first, are computed together.
        cut: Places of the operands that have the rows.
    """

    def __init__(self, prologue: fx.GraphModule, rows: InRows, size: int) -> None:
        """Takes the attributes."""
        self.prologue, self.rows, self.size = prologue, rows, size
        placeholders = [node for node in prologue.graph.nodes if node.op == "placeholder"]
        self.cut = [place for place, node in enumerate(placeholders) if node in rows.cut]
        self._flags: dict[tuple[bool, ...], Flags | None] = {}

    def cut_of(self, given: Sequence[Any]) -> Cut:
        """Returns into how many parts some operands can be cut."""
        sizes = {place: len(given[place]) for place in self.cut}
        return Cut(math.gcd(*sizes.values()), sizes)

    def flags(self, before: Before, cut: Cut, given: Sequence[Any]) -> Flags | None:
        """Returns which results require a gradient, found out once by running one part of the rows.

        Args:
            before: The prologue.
            cut: Of its rows.
            given: Its operands.

        Returns:
            By the place of the results; None where the rows cannot be run by themselves, or where a gradient would lead
            past the stand-ins for Parameters.
        """
        key = tuple(before.wanted)
        if key not in self._flags:
            self._flags[key] = self._tried(before, cut, given)
        return self._flags[key]

    def _tried(self, before: Before, cut: Cut, given: Sequence[Any]) -> Flags | None:
        operands = [value.detach() if isinstance(value, Tensor) else value for value in given]
        for place in cut.sizes:
            operands[place] = cut.part(operands[place], 0, 1)
        for value, need in zip(operands, before.wanted, strict=False):
            if need:
                value.requires_grad_()
        stand_ins: dict[Tensor, Tensor] = {value: value.detach().requires_grad_() for value in before.parameters}

        def normalise(node: fx.Node, value: Tensor) -> Tensor:
            return weighted(value, *weights_of(node, self.prologue, stand_ins, operands))

        run, results = RowRun(self.prologue, Twins(stand_ins), self.rows.norms), self.rows.results
        try:
            found = run.values(operands, results.values(), normalise, through=True)
        except RuntimeError:  # sizes that one part does not have
            return None
        if leads_past(list(found.values()), stand_ins):
            return None
        last = max(results, default=-1)
        return [place in results and found[results[place]].requires_grad for place in range(last + 1)]
