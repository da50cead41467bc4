"""Which values of a step are the same at every time step, and which are tensors."""

from __future__ import annotations

import torch
from torch import fx
from torch.utils import _pytree as pytree

from tracecompile.operations import NORMALISES, Fact, has
from tracecompile.program import StepProgram, example_value


def static_nodes(program: StepProgram) -> set[fx.Node]:
    """Returns the nodes whose value is the same at every time step: parameters and what depends on them alone.

    A batch normalisation and a dropout are none of them: each visit moves running statistics or draws a mask.
    """
    found: set[fx.Node] = set()
    for node in program.step.graph.nodes:
        if node.op == "placeholder":
            if node.name in program.invariants:
                found.add(node)
        elif (
            node.op != "output"
            and all(source in found for source in node.all_input_nodes)
            and not _changes_when_run(program, node)
        ):
            found.add(node)
    return found


def _changes_when_run(program: StepProgram, node: fx.Node) -> bool:
    if node.meta.get("draws"):
        return True
    module = program.resolve(str(node.target)) if node.op == "call_module" else None
    return has(node, NORMALISES, module) or (module is not None and has(node, Fact.RANDOM, module))


def holds_tensors(node: fx.Node) -> bool:
    """Tells whether a node holds a tensor, or several: (values, indices) of a maximum, the parts of a split."""
    return any(isinstance(leaf, torch.Tensor) for leaf in pytree.tree_leaves(example_value(node)))
