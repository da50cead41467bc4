"""Which nodes of a tape are whole sequences, and what is computed of them step by step."""

from __future__ import annotations

from dataclasses import dataclass

import torch
from torch import Tensor, fx, nn

from tracecompile.analysis.pointwise import acts_alone
from tracecompile.capture.layerwise.layout import Layout, layout_of_axis
from tracecompile.capture.layerwise.numbers import Numbers
from tracecompile.capture.layerwise.probing import FAILURES, Prober
from tracecompile.capture.layerwise.recipe import Recipe, RecipeFinder
from tracecompile.capture.layerwise.running import running_sum
from tracecompile.capture.layerwise.stacks import stacked
from tracecompile.capture.loops.places import place_key, visit_counts
from tracecompile.capture.loops.slices import Pick, picked
from tracecompile.capture.steps.shapes import kind_of
from tracecompile.capture.tracing.build import find
from tracecompile.capture.tracing.tape import Tape
from tracecompile.operations import Fact, has

LAYOUT = "layout"
"""Of a placeholder, ``meta[LAYOUT]`` says where its time steps are, None for nowhere; by default as in all."""
OF_A_LOOP = "of a loop"
"""``meta[OF_A_LOOP]`` of such a placeholder says whether a loop before has computed it: it has a gradient."""


@dataclass(frozen=True)
class Whole:
    """A node that is a whole sequence.

    Attributes:
        layout: Where its time steps are.
        items: The value of each step, where it was put together from those.
        recipe: How it is computed at one step; None where its steps can only be taken out of it.
        learns: Whether parameters have a part in what is done with the input, or with the values of a loop.
        from_loop: Whether a loop over time computes what it is made of.
        mixing: The operation that makes something of several steps together that parameters or a loop have a part in.
        alone: Whether every element of it, and of what it is computed from, is computed or chosen by itself: the steps
            come to the same as the whole, bit for bit.
    """

    layout: Layout
    items: tuple[fx.Node, ...] | None = None
    recipe: Recipe | None = None
    learns: bool = False
    from_loop: bool = False
    mixing: fx.Node | None = None
    alone: bool = True

    @property
    def given(self) -> bool:
        """Whether it is known before the loop, and no parameter has a part in it."""
        return not self.learns and not self.from_loop


class WholeSequences:
    """Finds the whole sequences of a tape.

    Args:
        root: The copy of the model that was traced.
        steps: The number of time steps.
        axis: The time axis of the arguments, where they have one.
    """

    def __init__(self, tape: Tape, root: nn.Module, steps: int, axis: int | None) -> None:
        self.tape = tape
        self.root = root
        self.steps = steps
        self.axis = axis
        self.prober = Prober(tape, root)
        self.found: dict[fx.Node, Whole] = {}
        self.learning: set[fx.Node] = set()
        self.later: set[fx.Node] = set()
        self.inside: set[fx.Node] = set()
        """What a loop computes at every step."""
        self.finder = RecipeFinder(self.prober, Numbers(self.found))

    def find(self) -> dict[fx.Node, Whole]:
        """Returns every whole sequence, in the order of the tape."""
        counts = visit_counts(self.tape)
        for node in self.tape.graph.nodes:
            if self._learns_itself(node) or any(source in self.learning for source in node.all_input_nodes):
                self.learning.add(node)
            key = place_key(node)
            inside = key is not None and counts[key] >= self.steps - 1
            if inside:
                self.inside.add(node)
            whole = self._whole(node) if not inside and isinstance(node.meta["val"], Tensor) else None
            if whole is not None:
                self.found[node] = whole
            elif inside or any(self._is_later(source) for source in node.all_input_nodes):
                self.later.add(node)
        return self.found

    def picked(self, node: fx.Node) -> Pick | None:
        """Returns which time step of which whole sequence a node is."""
        for pick in picked(node):
            whole = self.found.get(pick.sequence)
            if whole is not None and not whole.layout.merged and whole.layout.axis == pick.dim:
                return pick if -whole.layout.steps <= pick.number < whole.layout.steps else None
        return None

    def mixed_before(self, node: fx.Node) -> bool:
        """Tells whether parameters make a sequence, before any loop, of several time steps together."""
        whole = self.found[node]
        return whole.learns and not whole.from_loop and (whole.mixing is not None or whole.recipe is None)

    def turns_round(self, mixing: fx.Node) -> bool:
        """Tells whether an operation puts the steps of a loop into the opposite order: a flip, an index."""
        sources = [source for source in mixing.all_input_nodes if source in self.found]
        if len(sources) != 1 or not self.found[sources[0]].from_loop or not self.prober.may_run(mixing):
            return False
        before, after = self.found[sources[0]].layout, self.found[mixing].layout
        args, kwargs = fx.map_arg((mixing.args, mixing.kwargs), self.prober.drawn)
        value = self.prober.drawn(sources[0])
        try:
            made = self.prober.run(mixing, args, kwargs)
        except FAILURES:
            return False
        same_size = made.shape == mixing.meta["val"].shape and made.numel() == value.numel()
        return same_size and all(
            torch.equal(after.item(made, step), before.item(value, before.steps - 1 - step))
            for step in range(before.steps)
        )

    def _is_later(self, node: fx.Node) -> bool:
        whole = self.found.get(node)
        return node in self.later or (whole is not None and whole.from_loop)

    def _whole(self, node: fx.Node) -> Whole | None:
        if LAYOUT in node.meta:
            return None if node.meta[LAYOUT] is None else Whole(node.meta[LAYOUT])
        if node.op == "placeholder":
            if self.axis is None or node not in self.tape.inputs or node.meta["val"].dim() <= self.axis:
                return None
            return Whole(Layout(self.axis, node.meta["val"].shape[self.axis]))
        put_together = stacked(node, self.steps)
        if put_together is not None:
            layout, items = put_together
            return Whole(layout, items, from_loop=True)
        return None if self.picked(node) is not None else self._computed(node)

    def _computed(self, node: fx.Node) -> Whole | None:
        """Returns an operation on whole sequences as one."""
        kind = kind_of(node)  # a type and a device are nothing of the steps
        operands = [operand for operand in self.finder.call(node).all_input_nodes if operand is not kind]
        sources = {source: self.found[source] for source in operands if source in self.found}
        others = [source for source in operands if source not in sources]
        if not sources:
            return None
        own = self._learns_itself(self.finder.call(node)) or any(source in self.learning for source in others)
        learns = own or any(source.learns for source in sources.values())
        from_loop = any(source.from_loop for source in sources.values())
        mixing = next((source.mixing for source in sources.values() if source.mixing is not None), None)
        late = any(source in self.later and isinstance(source.meta["val"], Tensor) for source in others)
        layouts = {source: whole.layout for source, whole in sources.items()}
        recipe = None if late else self.finder.find(node, layouts) or running_sum(node, layouts)
        if recipe is not None:
            own = recipe.same is not None or acts_alone(node) or self._chooses(node)
            alone = own and all(source.alone for source in sources.values())
            layout = recipe.layout
            return Whole(layout, None, recipe, learns, from_loop, mixing, alone)
        shape = tuple(node.meta["val"].shape)
        guesses = [layout_of_axis(shape, each.axis, each.steps) for each in layouts.values()]
        layout_guess = next((guess for guess in guesses if guess is not None), None)
        if layout_guess is None:
            return None
        if mixing is None and (from_loop or any(source.learns for source in sources.values())):
            mixing = node
        return Whole(layout_guess, None, None, learns, from_loop, mixing, alone=False)

    def _chooses(self, node: fx.Node) -> bool:
        return has(node, Fact.CHOOSES, self.prober.module(node))

    def fewer(self) -> set[fx.Node]:
        """Returns what is chosen of the values of a loop and is smaller than they are, where nothing else reads them.

        Such are spikes that are pooled by their maximum: spikes again. What only lays them out is among them.
        """
        chosen: set[fx.Node] = set()
        for node, whole in self.found.items():
            if whole.recipe is None or not whole.from_loop or whole.mixing is not None:
                continue
            source = whole.recipe.same
            if source is not None:
                is_fewer = source in chosen and self._readers(source) == 1
            elif is_fewer := self._chooses(node) and not whole.learns:
                source = next(each for each in node.all_input_nodes if each in self.found)
                is_fewer = node.meta["val"].numel() < source.meta["val"].numel() and self._read_once(source)
            if is_fewer:
                chosen.add(node)
        return chosen

    def _read_once(self, node: fx.Node) -> bool:
        """Tells whether one operation alone reads the values of a loop, however they are laid out for it."""
        while self.found[node].items is None:
            sources = [source for source in node.all_input_nodes if source in self.found]
            if len(sources) != 1 or self._readers(node) != 1 or self.found[node].recipe is None:
                return False
            node = sources[0]
        return self._readers(node) == 1

    @staticmethod
    def _readers(node: fx.Node) -> int:
        """Returns how many nodes read more of a tensor than its size."""
        return sum(isinstance(user.meta["val"], Tensor) for user in node.users)

    def _learns_itself(self, node: fx.Node) -> bool:
        if node.op == "get_attr":
            constant = str(node.target) in self.tape.constants
            return not constant and isinstance(find(self.root, str(node.target)), nn.Parameter)
        if node.op == "call_module" and str(node.target) not in self.tape.leaves:
            return any(True for _ in find(self.root, str(node.target)).parameters())
        return False
