"""Which parameters a learning signal can reach."""

from __future__ import annotations

import copy
import re
from collections.abc import Sequence
from typing import Any

import torch
from torch import Tensor, nn

from tracecompile.errors import UnsupportedOperation
from tracecompile.program import StepProgram, final_states_read
from tracecompile.segment import segments_of


def reached_parameters(program: StepProgram) -> set[nn.Parameter]:
    """Returns the parameters from which a differentiable way leads to what the model returns, should they ask for it.

    Autograd answers it on one step of the captured program: what the outputs and the final states that the user reads
    depend on, and, until nothing is added, what the next values of those states depend on. What the step takes leads on
    to what was computed before the loop; what is computed after it is on the way to the result.

    Raises:
        UnsupportedOperation: Torch itself has no derivative of something on the way.
    """
    # Copies of the parameters, so that hooks of the user's do not run.
    memo: dict[int, Any] = {}
    step = copy.deepcopy(program.step, memo)
    values = [node.meta["val"] for node in program.step.graph.nodes if node.op == "placeholder"]
    first = len(values) - len(program.carries)
    given = [_leaf(value) for value in values]
    parameters = [p for p in program.root.parameters() if p.is_floating_point()]
    copies = _learning(parameters, memo)
    with torch.enable_grad(), torch.random.fork_rng(devices=[]):
        outputs, following = step(*given)
    live = {index for index, read in enumerate(final_states_read(program)) if read}
    while True:
        roots = [*outputs, *(following[index] for index in sorted(live))]
        try:
            found = _dependencies(roots, [*copies, *given])
        except RuntimeError as fault:
            raise _without_derivative(program, fault) from fault
        taken = found[len(parameters) :]
        grown = live | {index for index, reached in enumerate(taken[first:]) if reached}
        if grown == live:
            reached = {parameter for parameter, is_reached in zip(parameters, found, strict=False) if is_reached}
            return reached | _before(program, parameters, taken) | _after(program)
        live = grown


def _without_derivative(program: StepProgram, fault: RuntimeError) -> Exception:
    """Makes the refusal of an operation through which torch itself cannot learn; any other fault stays what it is."""
    match = re.search(r"derivative for aten::(\w+)", str(fault))
    if match is None:
        return fault
    named = [
        node for node in program.step.graph.nodes if match[1] in (node.target, getattr(node.target, "__name__", ""))
    ]
    return UnsupportedOperation(
        f"torch has no derivative of {match[1]}, so that the model itself cannot be trained.",
        "Pass the membrane through a surrogate function, such as those of tracecompile.nn, or detach what it reads.",
        named[0].meta.get("where") if named else None,
    )


def _before(program: StepProgram, parameters: list[nn.Parameter], taken: list[bool]) -> set[nn.Parameter]:
    """Returns the parameters on which what the step takes depends: hoisted layers, initial states."""
    memo: dict[int, Any] = {id(segment): _Returns(program, name) for name, segment in segments_of(program.leaves)}
    prologue = copy.deepcopy(program.prologue, memo)
    values = [node.meta["val"] for node in program.prologue.graph.nodes if node.op == "placeholder"]
    copies = _learning(parameters, memo)
    with torch.enable_grad(), torch.random.fork_rng(devices=[]):
        inputs, invariants, states = prologue(*values)
    given = (*inputs, *(None for _ in program.draws.names), *invariants, *states)
    roots = [value for value, is_taken in zip(given, taken, strict=True) if is_taken]
    found = _dependencies(roots, copies)
    within = [reached_parameters(segment.program) for _, segment in segments_of(program.leaves)]
    return {parameter for parameter, is_reached in zip(parameters, found, strict=True) if is_reached}.union(*within)


class _Returns(nn.Module):
    """Returns what a segment did on the example."""

    def __init__(self, program: StepProgram, name: str) -> None:
        super().__init__()
        self.values = next(node.meta["val"] for node in program.prologue.graph.nodes if str(node.target) == name)

    def forward(self, *given: Any) -> Any:
        """See the class."""
        return self.values


def _after(program: StepProgram) -> set[nn.Parameter]:
    """Returns the parameters that what runs after the loop uses."""
    found: set[nn.Parameter] = set()
    for node in program.epilogue.graph.nodes:
        if node.op in ("call_module", "get_attr"):
            value = program.resolve(str(node.target))
            found |= set(value.parameters()) if isinstance(value, nn.Module) else {value} & _parameters(program)
    return found


def _parameters(program: StepProgram) -> set[nn.Parameter]:
    return set(program.root.parameters())


def _learning(parameters: list[nn.Parameter], memo: dict[int, Any]) -> list[Any]:
    """Returns the copies of parameters, each of which asks for a gradient; those that nobody reads have none."""
    copies = [memo.get(id(parameter), parameter) for parameter in parameters]
    return [each.requires_grad_() if each is not own else own for each, own in zip(copies, parameters, strict=True)]


def _leaf(value: Any) -> Any:
    if not isinstance(value, Tensor):
        return value
    detached = value.detach().clone()
    return detached.requires_grad_() if detached.is_floating_point() else detached


def _dependencies(roots: Sequence[object], leaves: Sequence[Any]) -> list[bool]:
    tensors = [isinstance(leaf, Tensor) and leaf.requires_grad for leaf in leaves]
    terms = [root.sum() for root in roots if isinstance(root, Tensor) and root.requires_grad]
    wanted = [leaf for leaf, learns in zip(leaves, tensors, strict=True) if learns]
    if not terms or not wanted:
        return [False] * len(leaves)
    found = iter(torch.autograd.grad(terms, wanted, allow_unused=True, retain_graph=True))
    return [learns and next(found) is not None for learns in tensors]
