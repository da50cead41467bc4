"""What a step does to statistics of the model alone: no layer needs it, no gradient comes from it."""

from __future__ import annotations

from torch import fx

from tracecompile.analysis.statics import static_nodes
from tracecompile.operations.cone import cone
from tracecompile.program import StepProgram, is_tensor, step_results


class Moving:
    """The part of a step that moves statistics, and what it reads of the rest.

    Attributes:
        nodes: Nodes that only statistics need, in the order of the step; sizes that they ask for are among them.
        read: What they read of the rest of the step, and the statistics that the rest of the step computes.
    """

    def __init__(self, program: StepProgram) -> None:
        """Finds them in a captured program."""
        self.nodes: list[fx.Node] = []
        self.read: list[fx.Node] = []
        outputs, following = step_results(program.step)
        moved = [node for carry, node in zip(program.carries, following, strict=True) if carry.statistic]
        if not moved:
            return
        states = [node for carry, node in zip(program.carries, following, strict=True) if not carry.statistic]
        of_layers = cone([*outputs, *states])
        static = static_nodes(program)
        inside: set[fx.Node] = set()
        waiting = list(moved)
        while waiting:
            node = waiting.pop()
            of_rest = node.op == "placeholder" or node in static or (node in of_layers and is_tensor(node))
            if not of_rest and node not in inside:
                inside.add(node)
                waiting += node.all_input_nodes
        self.nodes = [node for node in program.step.graph.nodes if node in inside]
        sources = {source for node in inside for source in node.all_input_nodes} | set(moved)
        self.read = [node for node in program.step.graph.nodes if node in sources - inside]
