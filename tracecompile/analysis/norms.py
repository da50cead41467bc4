"""Normalisations by what they compute: torch's modules, and the functions that modules of one's own call."""

from __future__ import annotations

from inspect import isfunction, signature
from typing import Any

import torch
from torch import Tensor, fx, nn

from tracecompile.operations import NORMALISES, Fact, has, modules_with, operation_of_function
from tracecompile.program import StepProgram, example_value

NORMS = modules_with(Fact.BATCH_STATISTICS)
"""Normalisations whose statistics are recorded per step; see ``rules.norm``."""

_DEFAULTS: dict[str, Any] = {"training": False, "momentum": 0.1, "eps": 1e-5}


def norm_arguments(function: Any, args: tuple[Any, ...], kwargs: dict[str, Any]) -> dict[str, Any] | None:
    """Returns the arguments of a call of a normalising function by name, None for any other function.

    ``training`` says whether it normalises with the statistics of its input, whatever the function calls that.
    """
    facts = operation_of_function(function).facts if callable(function) else Fact(0)
    if not facts & NORMALISES:
        return None
    given = {**_DEFAULTS, **dict(zip(argument_names(function), args, strict=False)), **kwargs}
    if Fact.OWN_STATISTICS in facts:
        given["training"] = given.get("use_input_stats", True)
    return given


def argument_names(function: Any) -> list[str]:
    """Returns the names of a function's arguments, those of torch's operator where it is one: the order differs."""
    if isfunction(function):
        return list(signature(function).parameters)
    packet = getattr(torch.ops.aten, operation_of_function(function).name)
    return [argument.name for argument in packet.default._schema.arguments]


def batch_norm_arguments(node: fx.Node) -> dict[str, Any] | None:
    """Returns the arguments of a function that normalises by the statistics of its batch, None for all else."""
    if node.op != "call_function" or not has(node, Fact.BATCH_STATISTICS):
        return None
    given = norm_arguments(node.target, node.args, dict(node.kwargs))
    return given if given is not None and given["training"] else None


def takes_own_statistics(node: fx.Node, module: nn.Module | None) -> bool:
    """Tells whether a normalisation takes the statistics of what it is given; the running ones are constants.

    Args:
        node: A call of a normalisation.
        module: What a ``call_module`` node calls.
    """
    if module is not None:
        return module.training or getattr(module, "running_mean", None) is None
    given = norm_arguments(node.target, node.args, dict(node.kwargs))
    return given is not None and bool(given["training"])


def is_norm(program: StepProgram, node: fx.Node) -> bool:
    """Tells whether a node is a batch normalisation that may take the statistics of its batch."""
    if node.op == "call_module":
        return isinstance(program.resolve(str(node.target)), NORMS)
    return batch_norm_arguments(node) is not None


def moved_by(program: StepProgram, node: fx.Node) -> int | None:
    """Returns what identifies the running statistics that a normalisation may move, None where it has none."""
    if node.op == "call_module":
        module = program.resolve(str(node.target))
        mean = getattr(module, "running_mean", None) if has(node, NORMALISES, module) else None
        return None if mean is None else id(mean)
    if node.op != "call_function" or not has(node, NORMALISES):
        return None
    given = norm_arguments(node.target, node.args, dict(node.kwargs)) or {}
    mean = given.get("running_mean")
    if not (isinstance(mean, fx.Node) and mean.op == "get_attr" and given["training"]):
        return None
    return id(program.resolve(str(mean.target)))


def values_normalised(program: StepProgram) -> int:
    """Returns how many numbers the normalisations of a prologue take, of the example."""
    nodes = [node for node in program.prologue.graph.nodes if node.op != "placeholder" and is_norm(program, node)]
    return sum(value.numel() for node in nodes if isinstance(value := example_value(node), Tensor))
