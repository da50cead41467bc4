"""The gradient that others are compared with: of a graph over time, or where that would not fit of the exact rule."""

from __future__ import annotations

import copy
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from typing import Any

import torch
from torch import Tensor, nn
from torch.utils import _pytree as pytree

from tracecompile.capture.tracing.draws import drawing_again, torch_generators
from tracecompile.diagnostics.memory import memory_limit
from tracecompile.diagnostics.one_step import graph_bytes
from tracecompile.errors import InvalidInput
from tracecompile.program import example_value
from tracecompile.runtime.module import TracedModule, session_of
from tracecompile.settings import settings_of

Run = Callable[[Any, Any], Any]
LossFunction = Callable[[Any], Tensor]


@dataclass(frozen=True)
class Reference:
    """Gradients of a model as it is.

    Attributes:
        gradients: By parameter, of those that are trained.
        by: "bptt", or "exact" where the graph over time would take more than half of the memory that is free.
        generators: States of torch's generators from which the model drew: whoever is compared draws from there.
    """

    gradients: dict[str, Tensor | None]
    by: str
    generators: list[Tensor]


def reference_of(model: nn.Module, net: nn.Module, inputs: Any, loss_fn: LossFunction, run: Run) -> Reference:
    """Returns the gradients of a copy of a model; for the arguments see ``compare_gradients``.

    Raises:
        InvalidInput: No parameter reaches the loss.
    """
    names = [name for name, parameter in model.named_parameters() if parameter.requires_grad]
    copied, by = copy_of(model), "bptt"
    module: nn.Module = copied
    if isinstance(net, TracedModule) and not fits(net, inputs):
        module, by = TracedModule(copied, settings_of(rule="exact"), session_of(net).compiler), "exact"
    parameters = dict(copied.named_parameters())
    generators = torch_generators()
    found = gradients_of(module, [parameters[name] for name in names], inputs, loss_fn, run, generators)
    if all(gradient is None for gradient in found):
        raise InvalidInput(
            "The loss does not depend on any parameter of the model.",
            "Check that loss_fn uses the outputs and that nothing detaches them.",
        )
    return Reference(dict(zip(names, found, strict=True)), by, generators)


def fits(net: TracedModule, inputs: Any) -> bool:
    """Tells whether a graph over time of the model would take no more than half of the memory that is free."""
    session = session_of(net)
    if not session.is_ready:
        return True
    given = [leaf for leaf in pytree.tree_leaves(inputs) if isinstance(leaf, Tensor)]
    device = next((leaf.device for leaf in given), None)
    return predicted_bytes(net, inputs) <= memory_limit(device)


def predicted_bytes(net: TracedModule, inputs: Any) -> int:
    """Returns about how many bytes a graph over time holds.

    They are those of a step of the example, as many times as the inputs have more elements than one of its.
    """
    program = net.program
    sequences = {x.name for x in program.inputs}
    nodes = [node for node in program.step.graph.nodes if node.op == "placeholder" and node.name in sequences]
    elements: int = sum(example_value(node).numel() for node in nodes)
    given = sum(leaf.numel() for leaf in pytree.tree_leaves(inputs) if isinstance(leaf, Tensor))
    return graph_bytes(program) * given // max(elements, 1)


def gradients_of(
    module: Any,
    parameters: Sequence[nn.Parameter],
    inputs: Any,
    loss_fn: LossFunction,
    run: Run,
    generators: list[Tensor],
) -> tuple[Tensor | None, ...]:
    """Returns the gradients of some parameters; random numbers are drawn from these states on, then put back."""
    with drawing_again(generators), torch.enable_grad():
        loss = loss_fn(run(module, inputs))
        if not loss.requires_grad or not parameters:
            return (None,) * len(parameters)
        return torch.autograd.grad(loss, parameters, allow_unused=True)


def copy_of(model: nn.Module) -> nn.Module:
    """Deep copy of a model, also of one whose states are still part of an autograd graph."""
    memo: dict[int, Any] = {}
    for module in model.modules():
        for leaf in pytree.tree_leaves([dict(vars(module)), dict(module._buffers)]):
            if isinstance(leaf, Tensor) and not leaf.is_leaf:
                memo[id(leaf)] = leaf.detach().clone()
    return copy.deepcopy(model, memo)
