"""Normalisations by what they compute: torch's modules, and the functions that modules of one's own call."""

from __future__ import annotations

from typing import Any

import torch
from torch import fx, nn
from torch.nn import functional as F

from tracecompile.program import StepProgram

NORMS = (nn.BatchNorm1d, nn.BatchNorm2d, nn.BatchNorm3d, nn.SyncBatchNorm)
"""Normalisations whose statistics are recorded per step; see ``rules.norm``."""

BATCH_NORM = "input running_mean running_var weight bias training momentum eps".split()
_ARGUMENTS: dict[Any, list[str]] = {
    F.batch_norm: BATCH_NORM,
    torch.batch_norm: "input weight bias running_mean running_var training momentum eps cudnn".split(),
    F.instance_norm: "input running_mean running_var weight bias training momentum eps".split(),
    torch.instance_norm: "input weight bias running_mean running_var training momentum eps cudnn".split(),
}
_DEFAULTS: dict[str, Any] = {"training": False, "momentum": 0.1, "eps": 1e-5}


def norm_arguments(function: Any, args: tuple[Any, ...], kwargs: dict[str, Any]) -> dict[str, Any] | None:
    """Returns the arguments of a call of a normalising function by name, None for any other function.

    ``training`` says whether it normalises with the statistics of its input, whatever the function calls that.
    """
    names = _ARGUMENTS.get(function) if callable(function) else None
    if names is None:
        return None
    given = {**_DEFAULTS, **dict(zip(names, args, strict=False)), **kwargs}
    if function in (F.instance_norm, torch.instance_norm):
        given["training"] = given.get("use_input_stats", given["training"] if len(args) > 5 else True)
    return given


def batch_norm_arguments(node: fx.Node) -> dict[str, Any] | None:
    """Returns the arguments of a function that normalises by the statistics of its batch, None for all else."""
    if node.op != "call_function" or node.target not in (F.batch_norm, torch.batch_norm):
        return None
    given = norm_arguments(node.target, node.args, dict(node.kwargs))
    return given if given is not None and given["training"] else None


def is_norm(program: StepProgram, node: fx.Node) -> bool:
    """Tells whether a node is a batch normalisation that may take the statistics of its batch."""
    if node.op == "call_module":
        return isinstance(program.resolve(str(node.target)), NORMS)
    return batch_norm_arguments(node) is not None


def norm_owner(program: StepProgram, node: fx.Node) -> Any:
    """Returns what identifies the running statistics of a batch normalisation, None where it keeps none."""
    if node.op == "call_module":
        return id(program.resolve(str(node.target)))
    given = batch_norm_arguments(node) or {}
    mean = given.get("running_mean")
    return str(mean.target) if isinstance(mean, fx.Node) else None
