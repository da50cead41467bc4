"""Moves work on whole sequences into the time step.

A product over the whole sequence before the loop, between two loops or on the stacked spikes after the last one makes
autograd keep the sequence. Computed step by step it is part of a layer like any other. Before the first loop and after
the last the values stay those of the whole, see ``tracecompile.exact``; between two loops they are those of the steps.
"""

from __future__ import annotations

import operator

import torch
from torch import Tensor, fx, nn
from torch.utils import _pytree as pytree

from tracecompile.analysis.pointwise import acts_alone
from tracecompile.capture.layerwise.asked import Asked
from tracecompile.capture.layerwise.editing import Editor
from tracecompile.capture.layerwise.recipe import lays_out
from tracecompile.capture.layerwise.refusals import mixes_steps, operation
from tracecompile.capture.layerwise.running import rounds_alike
from tracecompile.capture.layerwise.stacks import spell_as_stacks
from tracecompile.capture.layerwise.whole import OF_A_LOOP, Whole, WholeSequences
from tracecompile.capture.layerwise.writing import StepWriter
from tracecompile.capture.loops.backwards import begins_with_the_last
from tracecompile.capture.loops.slices import Pick
from tracecompile.capture.steps.shapes import only_shape_matters
from tracecompile.capture.tracing.build import is_random
from tracecompile.capture.tracing.tape import Tape
from tracecompile.exact import exact_value
from tracecompile.operations.cone import cone

FEWEST_STEPS = 3


def work_step_by_step(tape: Tape, root: nn.Module, steps: int, axis: int | None) -> Tape:
    """Rewrites a tape so that work on whole sequences is done at every step.

    Args:
        root: The copy of the model that was traced.
        steps: The number of time steps.
        axis: The time axis of the arguments, where they have one.

    Raises:
        ConversionError: A later loop, or a parameter, reads what mixes time steps.
    """
    spell_as_stacks(tape, steps)
    if steps >= FEWEST_STEPS:
        _StepByStep(tape, WholeSequences(tape, root, steps, axis)).rewrite()
    return tape


class _StepByStep:
    def __init__(self, tape: Tape, sequences: WholeSequences) -> None:
        self.tape, self.graph = tape, tape.graph
        self.sequences = sequences
        self.wholes, self.fewer = sequences.find(), sequences.fewer()
        self.writer = StepWriter(tape, self.wholes, sequences.prober)
        self.editor = Editor(tape, sequences.prober)
        self.changed: set[fx.Node] = set()
        self.noted: set[fx.Node] = set()
        self.fixed: dict[fx.Node, fx.Node] = {}

    def rewrite(self) -> None:
        """Replaces what is read of whole sequences by what the steps compute."""
        live = cone([*pytree.tree_leaves(self.tape.result), *self.tape.attributes.values()])
        picks: dict[fx.Node, Pick] = {}
        for node in self.graph.nodes:
            # What the last steps take may not be read any more: the loop is the same there all the same.
            pick = self.sequences.picked(node)
            if pick is None or pick.sequence not in live:
                continue
            if self._is_computed(self.wholes[pick.sequence]) and not self.sequences.mixed_before(pick.sequence):
                picks[node] = pick
            elif pick.sequence.op != "placeholder" and node not in self.sequences.inside:
                self._copy(node)
        self._note_mixed_before(live)
        picks = self._without_mixed(picks, live)
        ends = [node for node in self.wholes if node in live and self._is_end(node, picks)]
        asked = Asked(self.editor, self.sequences, self.writer, live)
        self.writer.write([*(pick.sequence for pick in picks.values()), *ends, *asked.sequences])
        asked.replace()
        for node, pick in picks.items():
            self._replace_pick(node, pick)
        for node in ends:
            self._replace_end(node)
        self._compute_again()

    @staticmethod
    def _is_computed(whole: Whole) -> bool:
        return whole.items is not None or whole.mixing is not None or (whole.recipe is not None and not whole.given)

    def _note_mixed_before(self, live: set[fx.Node]) -> None:
        """Writes down whether a loop reads what is made of several time steps before it, and has a gradient."""
        behind: set[fx.Node] = set()  # what the loops before have a part in
        for node in self.graph.nodes:
            handed = bool(node.meta.get(OF_A_LOOP))
            if handed or not behind.isdisjoint(node.all_input_nodes):
                behind.add(node)
            if node not in live or node not in self.wholes or handed:
                continue
            mixed = self.sequences.mixed_before(node) or (node in behind and self.wholes[node].recipe is None)
            if mixed and self._reaches_a_loop(node):
                # A normalisation is another operation in the other mode.
                self.tape.mixes_before = self.tape.reads_mode = True

    def _without_mixed(self, picks: dict[fx.Node, Pick], live: set[fx.Node]) -> dict[fx.Node, Pick]:
        """Leaves out what is taken from sequences that mix time steps: it stays behind the loop, if no loop reads it.

        Whether what stays there holds the sequence is found out by running it.
        """
        for node, pick in picks.items():
            mixing = self.wholes[pick.sequence].mixing
            if mixing is not None and node in live and self._reaches_a_loop(node):
                if self.sequences.turns_round(mixing):
                    raise begins_with_the_last(mixing.meta.get("where"))
                raise mixes_steps(mixing, self.sequences.prober.module(mixing))
        return {node: pick for node, pick in picks.items() if self.wholes[pick.sequence].mixing is None}

    def _reaches_a_loop(self, node: fx.Node) -> bool:
        waiting, seen = [node], {node}
        while waiting:
            current = waiting.pop()
            if current in self.sequences.inside:
                return True
            waiting += [user for user in current.users if user not in seen]
            seen.update(current.users)
        return False

    def _is_end(self, node: fx.Node, picks: dict[fx.Node, Pick]) -> bool:
        """Tells whether a node is the last of what is made of the stacked values of a loop by parameters, or chosen."""
        whole = self.wholes[node]
        if whole.recipe is None or whole.mixing is not None:
            return False
        if not (whole.learns and whole.from_loop) and node not in self.fewer:
            return False
        returned = any(leaf is node for leaf in pytree.tree_leaves(self.tape.result))
        return returned or any(not self._is_stepwise(user, picks) for user in node.users)

    def _is_stepwise(self, user: fx.Node, picks: dict[fx.Node, Pick]) -> bool:
        whole = self.wholes.get(user)
        if (whole is not None and whole.recipe is not None and whole.mixing is None) or user in picks:
            return True
        if not isinstance(user.meta["val"], Tensor):
            return isinstance(user.meta["val"], (int, float)) or all(
                self._is_stepwise(one, picks) for one in user.users
            )
        return False

    def _replace_pick(self, node: fx.Node, pick: Pick) -> None:
        """Puts what one step computes in the place of what was taken out of the whole."""
        whole = self.wholes[pick.sequence]
        shaped = only_shape_matters(node) and not self.editor.is_returned(node)
        step = 0 if shaped else pick.number % whole.layout.steps
        if whole.alone or (whole.from_loop and self._reaches_a_loop(node)):
            item = self.writer.parts(pick.sequence, "kept" if pick.keep else "item")[step]
            if whole.from_loop:
                self._note(pick.sequence)
        else:
            fixed = self._detached(pick.sequence)
            with self.graph.inserting_before(node):
                value = self.editor.new(node, "call_method", "select", (fixed, pick.dim, step), "value")
                part = self.writer.parts(pick.sequence, "item")[step]
                item = self.editor.new(node, "call_function", exact_value, (part, value), "exact")
                if pick.keep:
                    item = self.editor.new(node, "call_method", "unsqueeze", (item, pick.dim), "kept")
        if pick.rest:
            with self.graph.inserting_before(node):
                item = self.editor.new(node, "call_function", operator.getitem, (item, pick.rest), "rest")
        if not torch.equal(item.meta["val"], node.meta["val"]):
            self.changed.add(item)
        self.editor.replace(node, item)

    def _replace_end(self, node: fx.Node) -> None:
        """Lets the loop compute what is computed of all its stacked values afterwards."""
        whole = self.wholes[node]
        anchor = None if whole.alone else self._detached(node)
        with self.graph.inserting_before((anchor or self.writer.last(node)).next):
            value = self._together(node, whole)
            if anchor is not None:
                value = self.editor.new(node, "call_function", exact_value, (value, anchor), None)
        self.editor.replace(node, value, keep=anchor)

    def _together(self, node: fx.Node, whole: Whole) -> fx.Node:
        """Puts the values of all steps together, laid out as the whole."""
        layout = whole.layout
        items = self.writer.parts(node, "item")
        made = self.editor.new(node, "call_function", torch.stack, (items, layout.stacking_axis), None)
        if layout.merged:
            made = self.editor.new(node, "call_method", "flatten", (made, layout.axis, layout.axis + 1), None)
        return made

    def _detached(self, node: fx.Node) -> fx.Node:
        """Returns the node of a sequence without its gradient, one for all steps.

        It is computed of operands without gradients, so that autograd saves nothing of the whole.
        """
        if node not in self.fixed:
            whole = self.wholes.get(node)
            recipe = None if whole is None or whole.given else whole.recipe
            call = node if recipe is None or recipe.call is None else recipe.call
            operands = {
                source: self._detached(source) if isinstance(source.meta["val"], Tensor) else source
                for source in (call.all_input_nodes if recipe is not None else ())
            }
            with self.graph.inserting_before(self.writer.last(node).next):
                made = node
                if recipe is not None:
                    args, kwargs = fx.map_arg((call.args, call.kwargs), operands.__getitem__)
                    made = self.editor.new(node, call.op, call.target, args, "value", kwargs)
                if recipe is not None and recipe.index is not None:
                    made = self.editor.new(
                        node, "call_function", operator.getitem, (made, recipe.index), "picked value"
                    )
                if recipe is None or call.op == "call_module":
                    made = self.editor.new(node, "call_method", "detach", (made,), None)
            self.fixed[node] = made
        return self.fixed[node]

    def _copy(self, node: fx.Node) -> None:
        """Makes a tensor of its own of a step taken out before the loop: what holds a view holds the whole sequence."""
        with self.graph.inserting_before(node.next):
            own = self.editor.new(node, "call_method", "clone", (node,), "own")
        self.editor.replace(node, own, keep=own)

    def _note(self, node: fx.Node) -> None:
        """Writes down what may round otherwise."""
        waiting = [node]
        while waiting:
            current = waiting.pop()
            whole = self.wholes.get(current)
            if whole is None or whole.recipe is None or current in self.noted:
                continue
            self.noted.add(current)
            waiting += current.all_input_nodes
            exact = whole.recipe.running and rounds_alike(current.meta["val"])
            moves = whole.recipe.same is not None or lays_out(current, self.sequences.prober.module(current))
            if not acts_alone(current) and not moves and not exact:
                self.tape.stepwise = tuple(dict.fromkeys([*self.tape.stepwise, operation(current)]))

    def _compute_again(self) -> None:
        """Brings the values of the example in line where steps round otherwise than the whole."""
        for node in self.graph.nodes if self.changed else ():
            if not any(source in self.changed for source in node.all_input_nodes) or is_random(node):
                continue
            if not self.sequences.prober.may_run(node):
                continue
            args, kwargs = fx.map_arg((node.args, node.kwargs), lambda used: used.meta["val"])
            with torch.no_grad():
                value = self.sequences.prober.run(node, args, kwargs)
            if not isinstance(value, Tensor) or not torch.equal(value, node.meta["val"]):
                node.meta["val"] = value
                self.changed.add(node)
