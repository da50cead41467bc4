"""What runs after the time loop, over what the loop collected."""

from __future__ import annotations

from typing import Any

import torch
from torch import fx

from tracecompile.capture.loops.collected import Collected, collected
from tracecompile.capture.loops.loop_body import Site
from tracecompile.capture.loops.loop_plan import LoopPlan
from tracecompile.capture.tracing.build import GraphCutter


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
        for (site, _), name in self.owner.outputs.items():
            self.collected[name] = self.cutter.placeholder(f"{name}_collected")
            self.collected[name].meta["where"] = self.loop.template(site).meta.get("where")
        for name in self.owner.carries.values():
            self.final[name] = self.cutter.placeholder(f"{name}_final")
        for node, name in self.owner.invariants.items():
            self.fixed[node] = self.cutter.placeholder(name, value=node.meta["val"])

    def leaf(self, value: Any) -> Any:
        """Returns one leaf of the user's return value; a list of one value per step stays a list."""
        items = collected(self.loop, value)
        if items is None:
            return self.cutter.take(value)
        taken = self.cutter.take(list(value))
        if isinstance(value, tuple):
            return taken
        return self.cutter.add("call_function", list, (taken,), {}, None)

    def resolve(self, cutter: GraphCutter, argument: Any) -> Any:
        """Says what stands for something of the trace after the loop."""
        if isinstance(argument, (list, tuple)):
            items = collected(self.loop, argument)
            return NotImplemented if items is None else self.unbound(items)
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
        owner = self.owner
        last = self.loop.steps - 1
        if step == last and site in owner.sums:
            return self.output(owner.sums[site], "sum")
        if step == last and site in owner.roller.writes:
            value = self.loop.when[self.loop.template(site).args[2]][1]  # type: ignore[index]
            return self.along(self.output(value, "stack"), owner.roller.writes[site], site)
        for past, name in owner.carries.items():
            if step == last and past.site == site and past.distance == 1:
                if self.dry and name not in self.final:
                    self.final[name] = self.cutter.placeholder(f"{name}_final")
                return self.final[name]
        if step == last:
            return self.output(site, "last")
        index = step if step < self.loop.steps / 2 else step - self.loop.steps
        return self.once(("item", site, index), "call_method", "select", (self.output(site, "stack"), 0, index))

    def output(self, site: Site, collect: Any) -> fx.Node:
        """Returns the placeholder of a collected output."""
        name = self.owner.ask_output(site, collect)
        if self.dry and name not in self.collected:
            self.collected[name] = self.cutter.placeholder(f"{name}_collected")
        return self.collected[name]

    def once(self, key: Any, op: str, target: Any, args: tuple[Any, ...]) -> fx.Node:
        """Adds a node the first time it is asked for."""
        if key not in self.derived:
            self.derived[key] = self.cutter.add(op, target, args, {}, None)
        return self.derived[key]

    def part(self, items: Collected) -> fx.Node:
        """Returns the stacked values of some consecutive steps."""
        stacked = self.output(items.site, "stack")
        if (items.start, items.stop) == (0, None):
            return stacked
        length = None if items.stop is None else items.stop - self.loop.steps
        return self.once(items, "call_method", "__getitem__", (stacked, slice(items.start, length)))

    def unbound(self, items: Collected) -> fx.Node:
        """Returns a tuple of values, one a step."""
        return self.once(("unbound", items), "call_method", "unbind", (self.part(items), 0))

    def stacked_again(self, node: fx.Node) -> fx.Node | None:
        """Turns ``torch.stack`` of one value per step into the collected tensor itself."""
        if node.target is not torch.stack:
            return None
        items = collected(self.loop, node.args[0])
        if items is None:
            return None
        dim = node.args[1] if len(node.args) > 1 else node.kwargs.get("dim", 0)
        return self.along(self.part(items), int(dim), items.site)  # type: ignore[arg-type]

    def along(self, stacked: fx.Node, dim: int, site: Site) -> fx.Node:
        """Moves the time axis to where the user put it."""
        if dim == 0:
            return stacked
        moved = self.once(("moved", stacked, dim), "call_method", "movedim", (stacked, 0, dim))
        # In memory as the user's own stack is: a sum over an axis adds up in the order of memory.
        return self.once(("laid out", stacked, dim), "call_method", "contiguous", (moved,))
