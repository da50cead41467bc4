"""What a trace leaves behind: the tape that every later stage of the capture reads."""

from __future__ import annotations

from dataclasses import dataclass, field, replace
from typing import Any

import torch
from torch import fx, nn
from torch.utils import _pytree as pytree

from tracecompile.errors import SourceLine


@dataclass(frozen=True)
class Condition:
    """A comparison of a number that the trace follows: what Python does next may depend on it.

    Attributes:
        sides: Both numbers.
        outcome: What came out.
        place: Where it stands, see ``source.Place``.
        where: The user's line.
        node: What computes the number, where it is a size or an argument; None for a step number.
        count: How far the loop counts that the step number comes from; -1 where there is none or it is not known.
    """

    sides: tuple[Any, Any]
    outcome: bool
    place: Any
    where: SourceLine | None
    node: fx.Node | None = None
    count: int = -1


@dataclass
class Tape:
    """What one run of the user's code did.

    Attributes:
        graph: Every operation, in order; in-place updates are already values.
        result: The user's return value with nodes in place of tensors and traced numbers.
        attributes: Node or constant that each tensor attribute holds at the end, by name.
        learning: Whether each of them is part of an autograd graph.
        written: Names of the attributes that hold something else than at the start.
        leaves: The surrogate functions and whole neurons, by target.
        constants: Tensors that belong to no module, by target.
        inputs: Placeholder of each argument leaf (None for a baked constant).
        states: Placeholder of each attribute that was handed in as a state.
        again: The same call once more on what this one left behind, where it left anything.
        stepwise: Names of what the model computes for all steps at once, and this tape at each: it may round otherwise.
        conditions: Comparisons of numbers, in order.
        reads_mode: Whether code that is not torch's own asked a module whether it is in training mode.
        statistics: Those of the written attributes that outlive the sequence with no gradient. Where there are any, the
            result is a pair, of the user's own and of what they hold at the end, by name.
        mixes_before: Whether something before the loop makes of several time steps together what the loop reads.
        generators: States of torch's generators when the run began.
    """

    graph: fx.Graph
    result: Any = None
    attributes: dict[str, fx.Node] = field(default_factory=dict)
    learning: dict[str, bool] = field(default_factory=dict)
    written: tuple[str, ...] = ()
    leaves: dict[str, nn.Module] = field(default_factory=dict)
    constants: dict[str, torch.Tensor] = field(default_factory=dict)
    inputs: list[fx.Node | None] = field(default_factory=list)
    states: dict[str, fx.Node] = field(default_factory=dict)
    again: Tape | None = None
    conditions: list[Condition] = field(default_factory=list)
    reads_mode: bool = False
    stepwise: tuple[str, ...] = ()
    statistics: tuple[str, ...] = ()
    mixes_before: bool = False
    generators: list[torch.Tensor] = field(default_factory=list)

    def states_written(self) -> tuple[str, ...]:
        """Returns the written attributes that are no statistics."""
        return tuple(name for name in self.written if name not in self.statistics)

    def results(self) -> tuple[Any, dict[str, fx.Node]]:
        """Returns the user's result, and what the statistics hold at the end."""
        return self.result if self.statistics else (self.result, {})

    def copy(self) -> Tape:
        """Returns a tape with nodes of its own, to be rewritten."""
        graph, copies = fx.Graph(), dict[fx.Node, fx.Node]()
        graph.graph_copy(self.graph, copies)

        def mapped(value: Any) -> Any:
            # A number that only Python looked at has a node no longer.
            return pytree.tree_map(lambda leaf: copies.get(leaf, leaf) if isinstance(leaf, fx.Node) else leaf, value)

        return replace(
            self,
            graph=graph,
            result=mapped(self.result),
            attributes=mapped(self.attributes),
            inputs=mapped(self.inputs),
            states=mapped(self.states),
            # What only Python looked at is no longer in the graph.
            conditions=[
                replace(one, node=copies.get(one.node, one.node) if one.node else None) for one in self.conditions
            ],
            again=None if self.again is None else self.again.copy(),
        )

    def compared_inputs(self) -> tuple[int, ...]:
        """Returns the positions of the arguments that are numbers on which a comparison depends."""
        seen: set[fx.Node] = set()
        waiting = [condition.node for condition in self.conditions if condition.node is not None]
        while waiting:
            node = waiting.pop()
            # The size of a tensor has nothing to do with a number that is handed in.
            if node not in seen and not isinstance(node.meta.get("val"), torch.Tensor):
                seen.add(node)
                waiting += node.all_input_nodes
        return tuple(position for position, node in enumerate(self.inputs) if node is not None and node in seen)
