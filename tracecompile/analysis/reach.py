"""Which parameters a learning signal can reach."""

from __future__ import annotations

import copy
from collections.abc import Sequence
from typing import Any

import torch
from torch import Tensor, nn

from tracecompile.program import StepProgram, final_states_read


def reached_parameters(program: StepProgram) -> set[nn.Parameter]:
    """Returns the parameters from which a differentiable way leads to what the model returns.

    Autograd answers it on one step of the captured program: what the outputs and the final states that the user reads
    depend on, and, until nothing is added, what the next values of those states depend on.
    """
    # Copies of the parameters, so that hooks of the user's do not run.
    memo: dict[int, Any] = {}
    step = copy.deepcopy(program.step, memo)
    values = [node.meta["val"] for node in program.step.graph.nodes if node.op == "placeholder"]
    first = len(values) - len(program.carries)
    states = [_leaf(value) for value in values[first:]]
    parameters = [p for p in program.root.parameters() if p.requires_grad and id(p) in memo]
    copies = [memo[id(parameter)] for parameter in parameters]
    with torch.enable_grad(), torch.random.fork_rng(devices=[]):
        outputs, following = step(*values[:first], *states)
    live = {index for index, read in enumerate(final_states_read(program)) if read}
    while True:
        roots = [*outputs, *(following[index] for index in sorted(live))]
        found = _dependencies(roots, [*copies, *states])
        grown = live | {index for index in range(len(states)) if found[len(parameters) + index]}
        if grown == live:
            return {parameter for parameter, reached in zip(parameters, found, strict=False) if reached}
        live = grown


def _leaf(value: Tensor) -> Tensor:
    detached = value.detach().clone()
    return detached.requires_grad_() if detached.is_floating_point() else detached


def _dependencies(roots: Sequence[object], leaves: Sequence[Tensor]) -> list[bool]:
    terms = [root.sum() for root in roots if isinstance(root, Tensor) and root.requires_grad]
    wanted = [leaf for leaf in leaves if leaf.requires_grad]
    if not terms or not wanted:
        return [False] * len(leaves)
    found = iter(torch.autograd.grad(terms, wanted, allow_unused=True, retain_graph=True))
    return [leaf.requires_grad and next(found) is not None for leaf in leaves]
