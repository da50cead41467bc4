"""What runs after the time loop, over what the loop collected."""

from __future__ import annotations

import operator
from typing import Any

import torch
from torch import fx

from tracecompile.capture.loops.collected import Part, Run, collected, edge
from tracecompile.capture.loops.loop_body import Site
from tracecompile.capture.loops.loop_plan import LoopPlan
from tracecompile.capture.tracing.build import GraphCutter
from tracecompile.program import ChosenSteps, Collect


class After:
    """Builds the epilogue.

    Args:
        owner: Names outputs, states and invariants.
        dry: Only finds out what is needed: placeholders come into being as they are asked for.
    """

    def __init__(self, owner: LoopPlan, dry: bool) -> None:
        self.owner = owner
        self.loop = owner.loop
        self.dry = dry
        self.cutter = GraphCutter(self.resolve)
        self.collected: dict[str, fx.Node] = {}
        self.final: dict[str, fx.Node] = {}
        self.fixed: dict[fx.Node, fx.Node] = {}
        self.derived: dict[Any, fx.Node] = {}

    def build(self) -> fx.Graph:
        """Returns the graph; its results are the leaves of the user's return value."""
        if not self.dry:
            self._placeholders()
        return self.cutter.finish(tuple(self.leaf(value) for value in self.owner.results))

    def _placeholders(self) -> None:
        for (site, _, _), name in self.owner.outputs.items():
            self.collected[name] = self.cutter.placeholder(f"{name}_collected")
            self.collected[name].meta["where"] = self.loop.template(site).meta.get("where")
        for name in self.owner.carries.values():
            self.final[name] = self.cutter.placeholder(f"{name}_final")
        for node, name in self.owner.invariants.items():
            self.fixed[node] = self.cutter.placeholder(name, value=node.meta["val"])

    def leaf(self, value: Any) -> Any:
        """Returns one leaf of the user's return value; a list of values of the loop stays a list."""
        parts = collected(self.loop, value)
        if parts is None:
            return self.cutter.take(value)
        listed = self.listed(parts)
        return listed if isinstance(value, tuple) else self.cutter.add("call_function", list, (listed,), {}, None)

    def resolve(self, cutter: GraphCutter, argument: Any) -> Any:
        """Says what stands for something of the trace after the loop."""
        if isinstance(argument, (list, tuple)):
            parts = collected(self.loop, argument)
            return NotImplemented if parts is None else self.listed(parts)
        if not isinstance(argument, fx.Node) or argument in cutter.copies:
            return NotImplemented
        if argument in self.loop.when:
            return self.value_of_loop(*self.loop.when[argument])
        stacked = self.stacked_again(argument)
        if stacked is not None:
            return stacked
        if argument in self.owner.movable or self.is_after(argument):
            return NotImplemented
        name = self.owner.ask_invariant(argument)
        if self.dry and argument not in self.fixed:
            self.fixed[argument] = cutter.placeholder(name)
        return self.fixed[argument]

    def is_after(self, node: fx.Node) -> bool:
        """Tells whether a node reads the loop."""
        seen: set[fx.Node] = set()
        waiting = [node]
        while waiting:
            current = waiting.pop()
            if current in self.loop.when:
                return True
            if current not in seen:
                seen.add(current)
                waiting.extend(current.all_input_nodes)
        return False

    def value_of_loop(self, step: int, site: Site) -> fx.Node:
        """Returns a single value of the loop: the final state, the sum, the last output, or one of all."""
        owner, loop = self.owner, self.loop
        total = owner.sums.get(site)
        if total is not None and step == loop.last(site):
            return self.output(total.added, "sum", total.chosen)
        last = step == loop.steps - 1
        for past, name in owner.carries.items():
            if last and past.site == site and past.distance == 1:
                if self.dry and name not in self.final:
                    self.final[name] = self.cutter.placeholder(f"{name}_final")
                return self.final[name]
        if last:
            return self.output(site, "last")
        index = edge(step, loop.steps)
        return self.once(("item", site, index), "call_method", "select", (self.output(site, "stack"), 0, index))

    def output(self, site: Site, collect: Collect, chosen: ChosenSteps | None = None) -> fx.Node:
        """Returns the placeholder of a collected output."""
        name = self.owner.ask_output(site, collect, chosen)
        if self.dry and name not in self.collected:
            self.collected[name] = self.cutter.placeholder(f"{name}_collected")
        return self.collected[name]

    def once(self, key: Any, op: str, target: Any, args: tuple[Any, ...]) -> fx.Node:
        """Adds a node the first time it is asked for."""
        if key not in self.derived:
            self.derived[key] = self.cutter.add(op, target, args, {}, None)
        return self.derived[key]

    def run(self, run: Run) -> fx.Node:
        """Returns the stacked values of a run of steps."""
        stacked = self.output(run.site, "stack")
        if run.bounds is not None:
            key = ("run", run.site, run.bounds)
            stacked = self.once(key, "call_function", operator.getitem, (stacked, slice(*run.bounds)))
        if run.backwards:
            stacked = self.once(("backwards", stacked), "call_method", "flip", (stacked, 0))
        return stacked

    def listed(self, parts: list[Part]) -> fx.Node:
        """Returns a list's values as a tuple."""
        pieces = [
            self.once(("unbound", part), "call_method", "unbind", (self.run(part), 0))
            if isinstance(part, Run)
            else (self.cutter.take(part),)
            for part in parts
        ]
        joined: Any = pieces[0]
        for piece in pieces[1:]:
            joined = self.cutter.add("call_function", operator.add, (joined, piece), {}, None)
        listed: fx.Node = joined
        return listed

    def stacked_again(self, node: fx.Node) -> fx.Node | None:
        """Turns ``torch.stack`` of values of the loop into what was collected of them."""
        if node.target is not torch.stack:
            return None
        parts = collected(self.loop, node.args[0])
        if parts is None:
            return None
        dim: Any = node.args[1] if len(node.args) > 1 else node.kwargs.get("dim", 0)
        pieces = [self.run(part) if isinstance(part, Run) else self.single(part) for part in parts]
        if len(pieces) == 1:
            return self.along(pieces[0], int(dim))
        return self.along(self.cutter.add("call_function", torch.cat, (pieces, 0), {}, None), int(dim))

    def single(self, node: fx.Node) -> fx.Node:
        """Returns a value as a record of one step."""
        return self.cutter.add("call_method", "unsqueeze", (self.cutter.take(node), 0), {}, None)

    def along(self, stacked: fx.Node, dim: int) -> fx.Node:
        """Moves the time axis to where the user put it."""
        if dim == 0:
            return stacked
        moved = self.once(("moved", stacked, dim), "call_method", "movedim", (stacked, 0, dim))
        # In memory as the user's own stack is: a sum over an axis adds up in the order of memory.
        return self.once(("laid out", stacked, dim), "call_method", "contiguous", (moved,))
