"""Runs a captured program the plain way, and compares it with the model that it came from."""

from __future__ import annotations

import copy
from typing import Any

import torch
from torch import fx, nn
from torch.utils import _pytree as pytree

from tracecompile.program import StepProgram


def collect(values: list[Any], how: str) -> Any:
    """Hands the per-step values of one output on as the epilogue wants them."""
    if how == "stack":
        return torch.stack(values)
    if how == "sum":
        total = values[0]
        for value in values[1:]:
            total = total + value
        return total
    return values[-1]


def run_sequence(program: StepProgram, *args: Any, **kwargs: Any) -> Any:
    """Executes prologue, step after step, and epilogue under ordinary autograd."""
    given = [leaf for leaf in pytree.tree_leaves((args, kwargs)) if isinstance(leaf, (torch.Tensor, int, float))]
    inputs, invariants, states = program.prologue(*given)
    length = program.length
    if length is None:
        length = inputs[0].shape[program.inputs[0].dim]
    rows = []
    for step in range(length):
        now = [whole.select(item.dim, step) for whole, item in zip(inputs, program.inputs, strict=True)]
        outputs, states = program.step(*now, *invariants, *states)
        rows.append(outputs)
    collected = [collect([row[k] for row in rows], output.collect) for k, output in enumerate(program.outputs)]
    return pytree.tree_unflatten(list(program.epilogue(*collected, *states, *invariants)), program.result)


class StepRunner:
    """Executes a step program call after call."""

    def __init__(self, program: StepProgram) -> None:
        self.program = program
        self.states: tuple[Any, ...] | None = None

    def __call__(self, *args: Any, **kwargs: Any) -> Any:
        program = self.program
        leaves = pytree.tree_leaves((args, kwargs))
        handed_in = bool(program.explicit_states) and len(leaves) > max(program.explicit_states)
        handed_in = handed_in and all(leaves[place] is not None for place in program.explicit_states)
        taken = set(program.explicit_states) if handed_in else set()
        given = [leaf for place, leaf in enumerate(leaves) if place not in taken and isinstance(leaf, torch.Tensor)]
        inputs, invariants, initial = program.prologue(*given)
        states = list(initial if self.states is None else self.states)
        explicit = [k for k, carry in enumerate(program.carries) if carry.explicit]
        for k, place in zip(explicit, program.explicit_states, strict=True):
            states[k] = leaves[place] if handed_in else initial[k]
        outputs, states = program.step(*inputs, *invariants, *states)
        self.states = states
        return pytree.tree_unflatten(list(program.epilogue(*outputs, *states, *invariants)), program.result)


def snapshot(model: nn.Module) -> dict[str, Any]:
    """Notes everything that a conversion could change in a model."""
    noted: dict[str, Any] = {"random": torch.get_rng_state().tolist()}
    for path, module in model.named_modules():
        for name, value in [*vars(module).items(), *module._buffers.items(), *module._parameters.items()]:
            if isinstance(value, torch.Tensor):
                noted[f"{path}.{name}"] = (
                    id(value),
                    value._version,
                    value.tolist(),
                    value.requires_grad,
                    value.grad is None,
                )
            elif isinstance(value, (int, float, str, type(None))):
                noted[f"{path}.{name}"] = value
            elif isinstance(value, (dict, list)):
                noted[f"{path}.{name}"] = [id(item) for item in (value.values() if isinstance(value, dict) else value)]
    return noted


def gradients(model: nn.Module, result: Any, weights: int = 0) -> list[torch.Tensor | None]:
    """Returns the gradient of every parameter for a random loss over all the results."""
    generator = torch.Generator().manual_seed(weights)
    tensors = [leaf for leaf in pytree.tree_leaves(result) if isinstance(leaf, torch.Tensor) and leaf.requires_grad]
    loss = sum((leaf * torch.randn(leaf.shape, generator=generator)).sum() for leaf in tensors)
    return list(torch.autograd.grad(loss, list(model.parameters()), allow_unused=True))


def assert_equal(first: Any, second: Any) -> None:
    """Asserts that two results are the same, bit for bit and in structure."""
    leaves, spec = pytree.tree_flatten(first)
    others, other_spec = pytree.tree_flatten(second)
    assert spec == other_spec
    for one, other in zip(leaves, others, strict=True):
        assert (one is None) == (other is None)
        if one is not None:
            assert torch.equal(one, other) if isinstance(one, torch.Tensor) else one == other


def untouched(model: nn.Module) -> nn.Module:
    """Returns a copy of a model that shares its Parameters."""
    return copy.deepcopy(model, {id(parameter): parameter for parameter in model.parameters()})


def normal_form(graph: fx.Graph) -> list[tuple[Any, ...]]:
    """Describes a graph up to the names of its nodes and states."""
    positions = {node: k for k, node in enumerate(graph.nodes)}
    rows = []
    for node in graph.nodes:
        arguments = fx.map_arg((node.args, node.kwargs), lambda used: f"%{positions[used]}")
        target = "" if node.op in ("placeholder", "output") else str(node.target).rpartition(".")[2]
        rows.append((node.op, target, repr(arguments)))
    return rows


def test_snapshot_notices_a_write() -> None:
    """The comparison that the tests of an untouched model rely on can fail."""
    model = nn.BatchNorm1d(2)
    before = snapshot(model)
    assert snapshot(model) == before
    model.running_mean.add_(1)
    assert snapshot(model) != before
