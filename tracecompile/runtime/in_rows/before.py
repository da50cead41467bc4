"""A prologue whose rows are kept apart but for its normalisations: one tensor as long as the sequence at a time.

Forward each normalisation writes over what it takes. For backward the inputs of the loop are made once more in the same
way, so that they are the same bit for bit; what the loss answers to them takes their place step by step; and from there
it is pulled to the operands a few rows at a time, with the statistics of the first run.
"""

from __future__ import annotations

from collections.abc import Callable, Sequence
from typing import Any

import torch
from torch import Tensor, fx, nn
from torch.nn.modules import module as hooked
from torch.utils import _pytree as pytree

from tracecompile.runtime.before import Before, memory_of
from tracecompile.runtime.in_rows.norms import HeardNorms, Statistics
from tracecompile.runtime.in_rows.plan import Cut, Flags, Plan
from tracecompile.runtime.in_rows.sweeps import Sweeps
from tracecompile.runtime.opened import Opened
from tracecompile.runtime.packed import unpacked


class BeforeInRows(Before):
    """One prologue, a few rows at a time where a gradient is pulled through it."""

    def __init__(
        self,
        plan: Plan,
        prologue: fx.GraphModule,
        opened: Callable[[], Opened],
        kept: Sequence[Any],
        draws: bool,
    ) -> None:
        """Remembers the circumstances, see ``Before``, and how the rows are computed."""
        super().__init__(prologue, opened, kept, draws)
        self.plan, self.cut = plan, Cut(0, {})
        self.statistics: dict[fx.Node, Statistics] = {}
        self._inputs: list[Tensor] = []

    def first(self, given: Sequence[Any]) -> tuple[list[Any], Flags]:
        """Runs it, and keeps nothing but the statistics; see ``Before``."""
        self.cut, norms = self.plan.cut_of(given), self.plan.rows.norms
        flags = self.plan.flags(self, self.cut, given)
        if flags is None:
            return super().first(given)
        leaves, found = self._heard([value.detach() if isinstance(value, Tensor) else value for value in given])
        lengths = [len(leaves[place]) for place in self.plan.rows.results]
        if len(found) == len(norms) and not any(length % self.cut.count for length in lengths):
            self.statistics = dict(zip(norms, found, strict=True))
        return leaves, [*flags, *(False for _ in leaves[len(flags) :])]

    def inputs(self) -> list[Tensor]:
        """Runs it once more, and returns the inputs of the loop, most of them in memory that nobody else has."""
        if not self.statistics:
            return super().inputs()
        with self.as_it_was():
            leaves, _ = self._heard([unpacked(value) for value in self.kept])
        assert self.spec is not None
        found: list[Tensor] = [value.detach() for value in pytree.tree_unflatten(leaves, self.spec)[0]]
        self.own = self.owned(found, ())
        # Held, so that the memory of another tensor is not taken for theirs.
        self._inputs = [value for value, own in zip(found, self.own, strict=True) if own]
        return found

    def pulled(self, signals: Sequence[Tensor | None]) -> list[Tensor | None]:
        """Pulls learning signals on the leaves of what it returns to its operands, a few rows at a time."""
        if not self.statistics:
            return super().pulled(signals)
        inputs, self._inputs = self._inputs, []
        memories = [memory_of(value) for value in inputs]
        results = {
            node: signal for place, node in self.plan.rows.results.items() if (signal := signals[place]) is not None
        }
        spare = [signal for signal in results.values() if memory_of(signal) in memories]
        with self.as_it_was():
            return Sweeps(self, self.plan, self.statistics, self.cut).pull(results, spare)

    def _heard(self, operands: Sequence[Any]) -> tuple[list[Any], list[Statistics]]:
        with torch.no_grad(), HeardNorms(self._may_write) as heard:
            leaves, self.spec = pytree.tree_flatten(self.prologue(*operands))
        return leaves, heard.found

    def _may_write(self, number: int) -> bool:
        """Tells whether nobody has a hold of what a normalisation takes."""
        rows = self.plan.rows
        if number >= len(rows.norms) or rows.norms[number] not in rows.alone:
            return False
        calls = (rows.norms[number], *rows.norms[number].all_input_nodes)
        modules: list[nn.Module] = [
            self.plan.prologue.get_submodule(str(node.target)) for node in calls if node.op == "call_module"
        ]
        hooks = [hooked._global_forward_hooks, hooked._global_forward_pre_hooks]
        hooks += [table for module in modules for table in (module._forward_hooks, module._forward_pre_hooks)]
        return not any(hooks)
