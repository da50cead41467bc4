"""Decides the order in which layers are computed and solved."""

from __future__ import annotations

from typing import ClassVar

from tracecompile.analysis.graph_view import blocks_of
from tracecompile.layers import Block
from tracecompile.passes.base import Pass
from tracecompile.passes.partition_layers import layer_reading
from tracecompile.program import StepProgram


class ScheduleTime(Pass):
    """Groups the layers into blocks: what feeds itself through a delay is stepped and solved together.

    requires: layers.
    ensures: every layer is in exactly one block; a block comes after everything that it reads.

        before: layers a (reads x), b (reads a, and b one step ago), c (reads b)
        after:  blocks (a), (b, recurrent), (c)
    """

    name: ClassVar[str] = "schedule_time"

    def requires(self, program: StepProgram) -> str | None:
        """See the class."""
        return None if program.layers else "there are no layers"

    def run(self, program: StepProgram) -> StepProgram:
        """See the class."""
        edges = []
        for reader, layer in enumerate(program.layers):
            for source in layer.sources:
                maker = layer_reading(program.layers, source)
                if maker is not None:
                    edges.append((reader, maker, source.delay))
        blocks = blocks_of(edges, len(program.layers))
        return program.evolve(blocks=tuple(Block(layers, recurrent) for layers, recurrent in blocks))

    def ensures(self, before: StepProgram, after: StepProgram) -> str | None:
        """See the class."""
        scheduled = sorted(index for block in after.blocks for index in block.layers)
        return None if scheduled == list(range(len(after.layers))) else "a layer is missing from the schedule"
