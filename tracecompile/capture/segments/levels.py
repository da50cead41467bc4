"""Which loop of a model comes after which operation that mixes time steps.

A normalisation over time and batch makes of the first step's spikes what the last step's currents are: no loop over
time can take it along. So the layers before it take all of their steps before those behind it take their first. The
level of a node is how many such places lie before it.
"""

from __future__ import annotations

import operator
from bisect import bisect_left
from typing import Any

from torch import fx
from torch.utils import _pytree as pytree

from tracecompile.capture.layerwise.whole import WholeSequences
from tracecompile.capture.loops.places import place_key, visits_of
from tracecompile.capture.tracing.tape import Tape
from tracecompile.operations.cone import cone


class Levels:
    """The level of every node that a tape's results depend on.

    Attributes:
        of: By node, counted from 0; placeholders and the model's own tensors have none.
        count: How many levels there are, each with a loop.
    """

    def __init__(self, tape: Tape, sequences: WholeSequences) -> None:
        """Looks for the places.

        Args:
            tape: The trace.
            sequences: Of it, found.
        """
        self.tape, self.sequences = tape, sequences
        ends = [*pytree.tree_leaves(tape.result), *tape.attributes.values()]
        self._returned = {end for end in ends if isinstance(end, fx.Node)}
        live = _at_all_steps(tape, cone(ends))
        self._nodes = [node for node in tape.graph.nodes if node in live and node.op not in ("placeholder", "get_attr")]
        self.of: dict[fx.Node, int] = dict.fromkeys(self._nodes, 0)
        if mixing := self._mixing():
            self._rise(mixing)
            self._sink()
            self._take_apart()
        looped = sorted({self.of[node] for node in self._nodes if node in sequences.inside})
        self.count = max(len(looped), 1)
        for node, level in self.of.items():
            self.of[node] = min(bisect_left(looped, level), self.count - 1)

    def _mixing(self) -> set[fx.Node]:
        """Returns what mixes the steps of a loop that a later loop reads."""
        inside, found = self.sequences.inside, self.sequences.found
        reaching: set[fx.Node] = set()
        for node in reversed(self._nodes):
            if any(user in inside or user in reaching for user in node.users):
                reaching.add(node)
        return {
            node for node, whole in found.items()
            if node in reaching and whole.mixing is node and whole.from_loop and not self.sequences.turns_round(node)
        }  # fmt: skip

    def _rise(self, mixing: set[fx.Node]) -> None:
        """Counts from the front; what is computed at one place is on one level in all steps."""
        at_place: dict[Any, int] = {}
        while True:
            before = dict(at_place)
            for node in self._nodes:
                level = max((self.of.get(source, 0) for source in node.all_input_nodes), default=0) + (node in mixing)
                if node in self.sequences.inside:
                    key = place_key(node)
                    level = at_place[key] = max(level, at_place.get(key, 0))
                self.of[node] = level
            if at_place == before:
                return

    def _sink(self) -> None:
        """Lets what no loop computes wait until it is read: spikes are handed on, and not what is made of them.

        But for fewer spikes, which they are pooled to: then what the loss answers to them is as small. And so does what
        a loop makes of the model's own tensors alone: it is that of the loop which reads it.
        """
        constant: set[fx.Node] = set()
        for node in self._nodes:
            if all(source.op == "get_attr" or source in constant for source in node.all_input_nodes):
                constant.add(node)
        visits, fewer = visits_of(self.tape), self.sequences.fewer()
        for node in reversed(self._nodes):
            whole = self.sequences.found.get(node)
            is_looped = node in self.sequences.inside
            if (is_looped and node not in constant) or node in self._returned or (whole is not None and whole.items):
                continue
            if node in fewer:
                continue
            shared = [one for one in visits[place_key(node)] if one in constant] if is_looped else [node]
            readers = [self.of[user] for one in shared for user in one.users if user in self.of]
            self.of[node] = max(self.of[node], min(readers, default=0))

    def _take_apart(self) -> None:
        """Lets what picks one of several values do so where those are computed: tensors are handed on, not tuples."""
        for node in self._nodes:
            source = node.args[0] if node.target is operator.getitem else None
            if isinstance(source, fx.Node) and isinstance(source.meta["val"], (tuple, list)) and source in self.of:
                self.of[node] = self.of[source]


def _at_all_steps(tape: Tape, live: set[fx.Node]) -> set[fx.Node]:
    """Returns with some nodes those of the same places: what the last step leaves may be read by nothing."""
    return cone([one for visits in visits_of(tape).values() if not live.isdisjoint(visits) for one in visits]) | live
