"""What the prologue makes for the epilogue alone: it may be as long as the sequence, and can be made anew for backward.

The end of a record that the loop does not fill, a mask, a layer on the input that is joined to the outputs.
"""

from __future__ import annotations

import itertools

from torch import fx, nn

from tracecompile.program import StepProgram


def read_by_steps(program: StepProgram) -> set[str]:
    """Returns the names of what the steps take that they read, or that decides what they draw."""
    graphs = [program.step, *([program.draws.graph] if program.draws.graph is not None else [])]
    nodes = (itertools.takewhile(lambda node: node.op == "placeholder", graph.graph.nodes) for graph in graphs)
    return {node.name for node in itertools.chain.from_iterable(nodes) if node.users}


def made_anew(program: StepProgram) -> frozenset[int]:
    """Returns the positions of the invariants that the epilogue alone reads, and that come out alike once more.

    What is computed of a buffer does not: it may have moved since.
    """
    read = read_by_steps(program)
    output = next(node for node in reversed(program.prologue.graph.nodes) if node.op == "output")
    made = enumerate(zip(program.invariants, output.args[0][1], strict=True))
    return frozenset(place for place, (name, node) in made if name not in read and _comes_out_alike(program, node))


def _comes_out_alike(program: StepProgram, node: object) -> bool:
    seen: set[fx.Node] = set()
    waiting = [node] if isinstance(node, fx.Node) else []
    while waiting:
        current = waiting.pop()
        if current not in seen:
            seen.add(current)
            waiting += current.all_input_nodes
    owned = [program.resolve(str(each.target)) for each in seen if each.op in ("get_attr", "call_module")]
    return all(
        not any(True for _ in each.buffers()) if isinstance(each, nn.Module) else isinstance(each, nn.Parameter)
        for each in owned
    )
