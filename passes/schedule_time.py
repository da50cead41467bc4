"""Decides the order in which layers are computed and solved, and what of them is computed for many steps at once."""

from __future__ import annotations

from typing import ClassVar

from torch import Tensor

from tracecompile.analysis.graph_view import blocks_of
from tracecompile.graphs.units import find_units
from tracecompile.layers import Block
from tracecompile.passes.base import Pass
from tracecompile.passes.partition_layers import layer_reading
from tracecompile.passes.scheduled import fault_of_order, fault_of_units
from tracecompile.program import StepProgram, example_value, step_results


class ScheduleTime(Pass):
    """Groups the layers into blocks: what feeds itself through a delay is stepped and solved together.

    Of every block, what reads other blocks alone can be computed for a chunk of steps at once: synapses with the steps
    side by side in the batch. What is left, the core (and in a recurrent block the synapses within it), is a scan over
    the chunk.

    requires: layers.
    ensures: every layer is in exactly one block; a block comes after everything that it reads. Several layers are one
        block only if they feed each other, and a block is recurrent only if it feeds itself. There is one unit per
        block: what it computes for many steps at once reads nothing of its own block, and all of a synapse that does
        not is computed so. A unit whose steps are taken one at a time says why. Units take turns where something ties
        one step of one to the next of another, all of them where it ties the whole step together; one unit moves the
        statistics that no layer needs.

        before: layers a (reads x), b (reads a, and b one step ago), c (reads b)
        after:  blocks (a), (b, recurrent), (c)
                units: (fc(x); scan of a), (fc(a); scan of rec(b one step ago) and b), (fc(b); scan of c)
    """

    name: ClassVar[str] = "schedule_time"

    def requires(self, program: StepProgram) -> str | None:
        """See the class."""
        return None if program.layers else "there are no layers"

    def run(self, program: StepProgram) -> StepProgram:
        """See the class."""
        grouped = blocks_of(layer_edges(program), len(program.layers))
        blocks = tuple(Block(layers, recurrent) for layers, recurrent in grouped)
        units, why = find_units(program, blocks)
        notes = (f"Every time step is taken by itself: {why}.",) if why and program.kind == "sequence" else ()
        apart = changes_shape_at_first(program)
        return program.evolve(blocks=blocks, units=units, first_apart=apart, notes=(*program.notes, *notes))

    def ensures(self, before: StepProgram, after: StepProgram) -> str | None:
        """See the class."""
        scheduled = sorted(index for block in after.blocks for index in block.layers)
        if scheduled != list(range(len(after.layers))):
            return f"the layers {list(range(len(after.layers)))} are scheduled as {scheduled}"
        if after.first_apart != changes_shape_at_first(after):
            return "the schedule is wrong about whether a state begins in another shape than it goes on with"
        return fault_of_order(after, layer_edges(after)) or fault_of_units(before, after)


def layer_edges(program: StepProgram) -> list[tuple[int, int, int]]:
    """Returns (reader, maker, delay) for every source that a layer reads from a layer."""
    edges = []
    for reader, layer in enumerate(program.layers):
        for source in layer.sources:
            maker = layer_reading(program.layers, source)
            if maker is not None:
                edges.append((reader, maker, source.delay))
    return edges


def changes_shape_at_first(program: StepProgram) -> bool:
    """Tells whether a state begins in another shape or precision than it goes on with: the first step is then apart."""
    placeholders = {node.name: node for node in program.step.graph.nodes if node.op == "placeholder"}
    for carry, made in zip(program.carries, step_results(program.step)[1], strict=True):
        before, after = example_value(placeholders[carry.placeholder]), example_value(made)
        tensors = isinstance(before, Tensor) and isinstance(after, Tensor)
        if tensors and (before.shape, before.dtype) != (after.shape, after.dtype):
            return True
    return False
