"""What the user's code asks of a whole sequence without reading it: its sizes, its type, its device.

``h.new_zeros(h.shape[1], 8)`` before a second loop does not wait for the first one: what it asks is known before.
"""

from __future__ import annotations

from collections.abc import Collection
from typing import Any

from torch import Tensor, fx

from tracecompile.capture.layerwise.editing import Editor
from tracecompile.capture.layerwise.whole import WholeSequences
from tracecompile.capture.layerwise.writing import StepWriter
from tracecompile.capture.steps.shapes import kind_of, same_shape_above
from tracecompile.operations.cone import cone


class Asked:
    """Answers from what is there before the loop, where something is alike, else from a step.

    Attributes:
        sequences: Those that are asked: the writer has to write their steps first.
    """

    def __init__(self, editor: Editor, found: WholeSequences, writer: StepWriter, live: Collection[fx.Node]) -> None:
        self.editor, self.writer, self.wholes = editor, writer, found.found
        self.later, self.inside = found.later, found.inside
        nodes = editor.graph.nodes
        self.sizes = [node for node in nodes if self._is_size(node) and node.args[0] in live]
        self.likened = [node for node in nodes if self._is_made_like(node) and kind_of(node) in live]
        asked = [*(node.args[0] for node in self.sizes), *map(kind_of, self.likened)]
        self.sequences = [one for one in asked if isinstance(one, fx.Node)]

    def replace(self) -> None:
        """Puts the answers in the place of the questions."""
        for node in self.sizes:
            self._replace_size(node)
        for node in self.likened:
            self._replace_kind(node)

    def _is_size(self, node: fx.Node) -> bool:
        """Tells whether a node is a size of what a loop computes, other than the number of steps."""
        whole = self.wholes.get(node.args[0]) if node.target == "size" and len(node.args) == 2 else None  # type: ignore[arg-type]
        if whole is None or not whole.from_loop or whole.mixing is not None:
            return False
        dim: Any = node.args[1]
        return isinstance(dim, int) and dim % node.args[0].meta["val"].dim() != whole.layout.axis  # type: ignore[union-attr]

    def _replace_size(self, node: fx.Node) -> None:
        """Takes a size from what is there before the loop, where arithmetic alone lies between, else from a step."""
        sequence, dim = node.args
        assert isinstance(sequence, fx.Node)
        assert isinstance(dim, int)
        layout = self.wholes[sequence].layout
        dim %= sequence.meta["val"].dim()
        item = self.writer.parts(sequence, "item")[0]
        above = same_shape_above(item)
        earlier = (one for one in self.editor.graph.nodes if one in above and one not in self.later)
        of = next((one for one in earlier if one.op != "get_attr"), item)
        with self.editor.graph.inserting_before(node):
            size = self.editor.new(
                node, "call_method", "size", (of, dim - (not layout.merged and dim > layout.axis)), "size"
            )
        self.editor.replace(node, size)

    def _is_made_like(self, node: fx.Node) -> bool:
        """Tells whether a node takes the type and the device of what a loop computes, and nothing else."""
        whole = self.wholes.get(kind_of(node))  # type: ignore[arg-type]
        return whole is not None and (whole.from_loop or node in self.inside)

    def _replace_kind(self, node: fx.Node) -> None:
        """Takes type and device from what is there before the loop, if something is of the same, else from a step."""
        sequence = kind_of(node)
        assert sequence is not None
        like, above = sequence.meta["val"], cone([sequence])
        earlier = (one for one in self.editor.graph.nodes if one in above and one not in self.later)
        values = ((one, one.meta["val"]) for one in earlier if one.op != "get_attr")
        alike = (
            one for one, value in values
            if isinstance(value, Tensor) and (value.dtype, value.device) == (like.dtype, like.device)
        )  # fmt: skip
        of = next(alike, None) or self.writer.parts(sequence, "item")[0]
        node.replace_input_with(sequence, of)
