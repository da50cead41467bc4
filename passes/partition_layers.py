"""Cuts the step into layers that talk only through spikes, inputs and learning signals."""

from __future__ import annotations

from typing import ClassVar

from tracecompile.analysis.moving import Moving
from tracecompile.graphs.extract import extract_layers, extract_statics
from tracecompile.layers import Layer, Source
from tracecompile.passes.base import Pass
from tracecompile.program import StepProgram, is_tensor, static_nodes


class PartitionLayers(Pass):
    """Gives every node of the step to exactly one layer and extracts the local graphs.

    requires: cores.
    ensures: every node that changes over time is in exactly one layer, or only moves statistics.

        before: cur = fc(x); <core of mem: spk>; cur_1 = fc2(spk); <core of mem2: out>; return (out,)
        after:  layer lif1: synapse(x) = fc(x), core(cur, mem) -> (spk), (mem_2)
                layer lif2: synapse(spk) = fc2(spk), core(cur_1, mem2) -> (out), (mem2_2)
    """

    name: ClassVar[str] = "partition_layers"

    def requires(self, program: StepProgram) -> str | None:
        """See the class."""
        return None if program.cores else "no core was found"

    def run(self, program: StepProgram) -> StepProgram:
        """See the class."""
        return program.evolve(layers=extract_layers(program), statics=extract_statics(program))

    def ensures(self, before: StepProgram, after: StepProgram) -> str | None:
        """See the class."""
        static = static_nodes(after)
        owned = [name for layer in after.layers for name in layer.nodes]
        if len(owned) != len(set(owned)):
            return "a node is in two layers"
        live = {
            node.name
            for node in after.step.graph.nodes
            if node.op not in ("placeholder", "output") and node not in static and is_tensor(node)
        }
        missing = live - set(owned) - {node.name for node in Moving(after).nodes}
        return f"nodes in no layer: {sorted(missing)}" if missing else None


def layer_reading(layers: tuple[Layer, ...], source: Source) -> int | None:
    """Returns the index of the layer that makes a source's value, or None for an input."""
    return next((index for index, layer in enumerate(layers) if source.origin in layer.outputs), None)
